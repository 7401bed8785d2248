"""How near the native op comes to what the processor allows: what it must move and compute, and how fast that can be.

    python benchmarks/roofline.py [--rounds R] [--json FILE]

One thread, float32, M = 4, residual and ReLU, at the layer shapes of ResNet-32 (batch 32) and ResNet-50 (batch 2). It
must read X and the residual and write Y once: 12 bytes a value; copying as many bytes is its floor in memory. Its
equations cost 8 M + 8 operations a value; a large matrix product shows how many a second this thread can do. The op
needs both, so the larger of the two times is its floor, and `of_floor` is what it took over that. "blocked" is the form
for onnxruntime's blocked layout, "planar" the one for ordinary tensors.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from cbn_deploy.atomic import atomic_write_bytes
from cbn_deploy.machine import describe_machine, is_busy
from cbn_deploy.native_library import FLOAT32, NativeLayer, NativeLibrary, native_library

COMPONENTS = 4
BLOCK = 16
# (network, images, channels, side)
SHAPES = (
    *(("ResNet-32", 32, channels, side) for channels, side in ((16, 32), (32, 16), (64, 8))),
    *(("ResNet-50", 2, channels, side) for channels, side in ((64, 112), (64, 56), (256, 56), (128, 28), (512, 28))),
    *(("ResNet-50", 2, channels, side) for channels, side in ((256, 14), (1024, 14), (512, 7), (2048, 7))),
)
Array = NDArray[np.float32]


def main() -> None:
    """Measure and print; with ``--json`` also write what was measured."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], epilog="Example: python benchmarks/roofline.py --json roofline.json"
    )
    parser.add_argument("--rounds", type=int, default=50, help="interleaved rounds for every shape")
    parser.add_argument("--json", type=Path, help="file to write")
    arguments = parser.parse_args()
    library = native_library()
    if library is None:
        parser.exit(2, "The native library is absent or turned off.\n")
    machine = describe_machine(["numpy"])
    if is_busy(machine):
        print(f"The machine is busy (load {machine['load_average']:.1f}): read the ratios, not the times.")
    rows = measure(library, arguments.rounds)
    if arguments.json is not None:
        result = {"machine": machine, "instruction_set": library.instruction_set, "rows": rows}
        atomic_write_bytes(arguments.json, f"{json.dumps(result, indent=1)}\n".encode())


def measure(library: NativeLibrary, rounds: int) -> list[dict[str, Any]]:
    """One row a shape, printed as it is measured."""
    print(f"{'layer':28s} {'copy GB/s':>9s} {'GFLOP/s':>8s} {'floor us':>9s}  bound by     planar  blocked  (of floor)")
    rows = []
    for network, images, channels, side in SHAPES:
        with threadpool_limits(limits=1, user_api="blas"):
            row = _row(library, network, (images, channels, side * side), rounds)
        rows.append(row)
        print(
            f"{network} {images} x {channels} x {side}x{side}".ljust(28)
            + f" {row['copy_gb_s']:9.1f} {row['matmul_gflop_s']:8.0f} {row['floor_us']:9.1f}  {row['bound_by']:10s}"
            + f" {row['of_floor']['planar']:8.2f} {row['of_floor']['blocked']:8.2f}",
            flush=True,
        )
    return rows


def _row(library: NativeLibrary, network: str, shape: tuple[int, int, int], rounds: int) -> dict[str, Any]:
    values = int(np.prod(shape))
    moved, operations = 12 * values, (8 * COMPONENTS + 8) * values
    times = _interleaved({**_op(library, shape), "copy": _copy(moved // 2), "matmul": _matmul()}, rounds)
    memory, arithmetic = times["copy"], operations / (_MATMUL_FLOP / times["matmul"])
    floor = max(memory, arithmetic)
    return {
        "network": network,
        "shape": list(shape),
        "bytes": moved,
        "operations": operations,
        "copy_gb_s": moved / memory / 1e9,
        "matmul_gflop_s": _MATMUL_FLOP / times["matmul"] / 1e9,
        "floor_us": floor * 1e6,
        "bound_by": "memory" if memory > arithmetic else "arithmetic",
        "of_floor": {name: times[name] / floor for name in ("planar", "blocked")},
        "gb_s": {name: moved / times[name] / 1e9 for name in ("planar", "blocked")},
    }


def _interleaved(runs: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Median seconds of a call of each."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: float(np.median(values)) for name, values in seconds.items()}


def _op(library: NativeLibrary, shape: tuple[int, int, int]) -> dict[str, Callable[[], None]]:
    rng = np.random.default_rng(0)
    images, channels, pixels = shape
    x, residual, y = (_aligned(rng.normal(size=shape)) for _ in range(3))
    tau = np.full(COMPONENTS, 1 / COMPONENTS, np.float32)
    tables = [tau, *(rng.uniform(0.5, 1.5, (COMPONENTS, channels)).astype(np.float32) for _ in range(4))]
    mean, var, scale, bias = tables[1:]
    addresses = (tau.ctypes.data, mean.ctypes.data, var.ctypes.data, scale.ctypes.data, bias.ctypes.data)
    layer = NativeLayer(library, COMPONENTS, channels, addresses, 1e-5, channels**-0.5)

    def run(block: int) -> None:
        layer.forward(
            FLOAT32, images, pixels, x.ctypes.data, y.ctypes.data, residual=residual.ctypes.data, relu=True, block=block
        )

    return {"planar": lambda: run(0), "blocked": lambda: run(BLOCK)}


def _aligned(values: NDArray[np.float64]) -> Array:
    """float32 that begins at a cache line, as a runtime's tensors do."""
    memory = np.empty(4 * values.size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    result = memory[start : start + 4 * values.size].view(np.float32).reshape(values.shape)
    result[...] = values
    return result


def _copy(size: int) -> Callable[[], None]:
    """Reads `size` bytes and writes as many."""
    source, target = np.ones(size // 4, np.float32), np.empty(size // 4, np.float32)
    return lambda: np.copyto(target, source)


_MATMUL_SIZE = 256
_MATMUL_FLOP = 2 * _MATMUL_SIZE**3


def _matmul() -> Callable[[], None]:
    left, right = np.ones((2, _MATMUL_SIZE, _MATMUL_SIZE), np.float32)
    out = np.empty_like(left)
    return lambda: np.matmul(left, right, out=out)  # type: ignore[no-any-return,func-returns-value]


if __name__ == "__main__":
    main()
