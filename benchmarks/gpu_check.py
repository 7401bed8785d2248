"""Everything that takes a GPU to know, in one call: parity of every kernel, bandwidth, times beside batch norm.

    python benchmarks/gpu_check.py --json results.json

runs from a source checkout on a machine that has torch and Triton; sections that need more are skipped and say why.
Results are written after every section, so a run that is cut off loses one section at most. Exit code 0: parity holds;
1: it does not, or a section broke; 2: this machine has no GPU.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def main() -> int:
    """Run the sections in order of importance."""
    arguments = _arguments()
    if arguments.dry_run:
        # Triton decides when it is first imported.
        os.environ["TRITON_INTERPRET"] = "1"
    try:
        import torch
        import triton
    except ModuleNotFoundError as error:
        print(f"gpu_check needs {error.name}; install it with: pip install {error.name}.", file=sys.stderr)
        return 2
    if not arguments.dry_run and not torch.cuda.is_available():
        print("This machine has no CUDA device; --dry-run tries the script itself on the CPU.", file=sys.stderr)
        return 2
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    from benchmarks.gpu.results import Clock, Report

    report = Report(arguments.json, _machine(torch, triton, dry_run=arguments.dry_run))
    total = Clock.of(arguments.seconds)
    for name, (budget, body) in _sections(arguments).items():
        if arguments.only is None or name in arguments.only:
            report.run(name, budget * arguments.seconds / 480, total, body)
    failures = report.failures()
    print(f"\n{arguments.json}: {len(failures)} failures")
    for failure in failures:
        print(f"FAILED {failure}", file=sys.stderr)
    return 1 if failures else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=Path("gpu_check.json"), help="where the results go")
    parser.add_argument("--seconds", type=float, default=480.0, help="stop after this long (default 480)")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--tune", action="store_true", help="also try other ways to cut the work")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes on the CPU, in Triton's interpreter")
    return parser.parse_args()


# Seconds of the default 480 that each section may take; the last ones have what the others leave.
SECTIONS = {
    "parity of inference": 100,
    "parity of training": 40,
    "parity of the split path": 20,
    "parity of operators": 25,
    "ahead-of-time PTX": 25,
    "copy bandwidth": 5,
    "inference kernels": 110,
    "networks": 75,
    "training step of the layer": 45,
    "training passes": 25,
    "training step of networks": 25,
    "recorded training steps": 60,
    "onnxruntime": 25,
    "TensorRT": 150,
    "tuning": 300,
}


def _sections(arguments: argparse.Namespace) -> dict[str, tuple[float, Callable[..., None]]]:
    from benchmarks.gpu import driver, layers, networks, parity, runtimes, shapes

    tiny = arguments.dry_run
    device = "cpu" if tiny else "cuda"
    every = shapes.TINY if tiny else [*shapes.RESNET50, *shapes.RESNET32]
    some = shapes.TINY if tiny else [*shapes.RESNET50[1:6:2], shapes.RESNET50[-1], *shapes.RESNET32]
    bodies: dict[str, Callable[..., None]] = {
        "parity of inference": partial(parity.inference, device=device, tiny=tiny),
        "parity of training": partial(parity.training_passes, device=device, tiny=tiny),
        "parity of the split path": partial(parity.split_passes, device=device, tiny=tiny),
        "parity of operators": partial(parity.operators, device=device, tiny=tiny),
        "ahead-of-time PTX": partial(driver.ahead_of_time, device=device),
        "copy bandwidth": partial(layers.copy_bandwidth, device=device, tiny=tiny),
        "inference kernels": partial(layers.inference, device=device, shapes=every),
        "networks": partial(networks.inference, device=device, tiny=tiny),
        "training step of the layer": partial(layers.training_step, device=device, shapes=some),
        "training passes": partial(layers.training_passes, device=device, shapes=some),
        "training step of networks": partial(networks.training_step, device=device, tiny=tiny),
        "recorded training steps": partial(_recorded_steps, device=device),
        "onnxruntime": partial(runtimes.onnxruntime_cuda, device=device, tiny=tiny),
        "TensorRT": partial(runtimes.tensorrt, device=device, tiny=tiny),
    }
    if arguments.tune:
        bodies["tuning"] = partial(layers.tune, device=device, shapes=every)
    return {name: (SECTIONS[name], body) for name, body in bodies.items()}


def _recorded_steps(section, clock, device: str) -> None:  # noqa: ANN001 - as below
    """Whole training steps need what cbn-train needs."""
    from benchmarks.gpu.results import SkippedError

    try:
        from benchmarks.gpu import recorded
    except ModuleNotFoundError as error:
        raise SkippedError(f"{error.name} is not installed") from error
    recorded.training_steps(section, clock, device)


def _machine(torch, triton, *, dry_run: bool) -> dict[str, object]:  # noqa: ANN001 - imported by name, after the environment is set
    machine: dict[str, object] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "dry_run": dry_run,
    }
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        machine |= {
            "gpu": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return machine


if __name__ == "__main__":
    sys.exit(main())
