"""What the native op costs: alone at ResNet-32's layer shapes, and in the whole network, in onnxruntime on the CPU.

Run it with ``python benchmarks/native_op.py [--threads N] [--rounds R] [--json FILE]``. Alone, the op with residual and
ReLU is compared with its portable body and with the standard ``Relu(X + residual)``, which reads and writes the same
memory and computes next to nothing: the floor. In the network, CBN fused and portable are compared with the batch-norm
twin, whose batch norm onnxruntime folds into the convolutions. Everything is checked before it is timed, and timed in
interleaved rounds (cbn_deploy.benchmark).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper

from cbn_deploy.benchmark import Candidate, Outcome, Plan, benchmark, paired_ratio, summarize
from cbn_deploy.machine import describe_machine, is_busy
from cbn_deploy.models import ArchitectureConfig, bn_twin, create_model
from cbn_deploy.native_library import native_library
from cbn_deploy.norm import NormConfig, freeze
from export.function_body import OPSET, function_body
from export.op import ADD_RELU, DOMAIN, TABLES, VERSION
from export.to_onnx import IR_VERSION, to_onnx

COMPONENTS = 4
# ResNet-32 on 32x32 images: channels, side of the square, and how many layers have that shape.
SHAPES = ((16, 32, 11), (32, 16, 10), (64, 8, 10))
BATCH_SIZES = (1, 8, 32)
Array = NDArray[np.float32]


def main() -> None:
    """Measure and print; with ``--json`` also write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    library = native_library()
    if library is None:
        parser.exit(2, "The native library is absent or turned off.\n")
    torch.set_num_threads(arguments.threads)
    machine = describe_machine(["onnxruntime", "numpy", "torch"])
    print(f"{machine['cpu']}, {arguments.threads} threads, kernels for {library.instruction_set}")
    if is_busy(machine):
        print(f"The machine is busy (load {machine['load_average']:.1f}): read the ratios, not the times.")
    plan = Plan(rounds=arguments.rounds, block_ms=20.0)
    rows = [*_op_rows(arguments.threads, plan), *_network_rows(arguments.threads, plan)]
    if arguments.json is not None:
        result = {"machine": machine, "threads": arguments.threads, "instruction_set": library.instruction_set}
        arguments.json.write_text(json.dumps(result | {"rows": rows}, indent=1) + "\n", encoding="utf-8")


def _op_rows(threads: int, plan: Plan) -> list[dict[str, Any]]:
    print("\nthe op alone, residual + ReLU: median ms, and the ratio to Relu(X + residual)")
    rows = []
    for channels, side, layers in SHAPES:
        model, floor = _op_models(channels)
        images = np.random.default_rng(0).normal(size=(max(BATCH_SIZES), 2 * channels, side, side)).astype(np.float32)
        runs = {
            "fused": _halves(_session(model, threads, fused=True), channels),
            "portable": _halves(_session(model, threads, fused=False), channels),
            "floor": _halves(_session(floor, threads, fused=False), channels),
        }
        expected = {"fused": "portable", "portable": "portable", "floor": "floor"}
        candidates = [_candidate(name, runs[name], runs[expected[name]](images)) for name in runs]
        outcome = benchmark(candidates, images, BATCH_SIZES, plan)
        rows += _report(f"{layers}x ({channels}, {side}, {side})", outcome, "floor")
    return rows


def _network_rows(threads: int, plan: Plan) -> list[dict[str, Any]]:
    print("\nResNet-32: median ms, and the ratio to the batch-norm twin")
    torch.manual_seed(0)
    config = ArchitectureConfig(name="resnet32", num_classes=10, norm=NormConfig(components=COMPONENTS))
    images = torch.randn(max(BATCH_SIZES), 3, 32, 32)
    cbn, twin = create_model(config), create_model(bn_twin(config))
    for model in (cbn, twin):
        with torch.no_grad():
            model.train()(images)  # statistics of real activations
    sources = {name: to_onnx(freeze(model.eval()), images[:1]) for name, model in (("cbn", cbn), ("bn", twin))}
    runs = {
        "CBN fused": _logits(_session(sources["cbn"], threads, fused=True)),
        "CBN portable": _logits(_session(sources["cbn"], threads, fused=False)),
        "BN twin": _logits(_session(sources["bn"], threads, fused=False)),
    }
    expected = {"CBN fused": "CBN portable", "CBN portable": "CBN portable", "BN twin": "BN twin"}
    candidates = [_candidate(name, runs[name], runs[expected[name]](images.numpy())) for name in runs]
    return _report("ResNet-32", benchmark(candidates, images.numpy(), BATCH_SIZES, plan), "BN twin")


def _candidate(name: str, run: Callable[[Array], Array], expected: Array) -> Candidate:
    limits = 1e-3 * np.maximum(np.abs(expected).max(1), 1.0)
    return Candidate(name=name, run=run, expected=expected.astype(np.float64), limits=limits.astype(np.float64))


def _report(case: str, outcome: Outcome, reference: str) -> list[dict[str, Any]]:
    failures = {name: parity.failure for name, parity in outcome.parity.items() if parity.failure}
    if failures:
        raise SystemExit(f"{case}: {failures}")
    rows = []
    for (name, batch_size), calls_ns in outcome.calls_ns.items():
        ratio = paired_ratio(calls_ns, outcome.calls_ns[reference, batch_size])
        median = summarize(calls_ns, batch_size).median
        rows.append({"case": case, "name": name, "batch_size": batch_size, "median_ms": median, "ratio": ratio.median})
        print(f"{case:18s} batch {batch_size:3d}  {name:13s} {median:9.4f} ms  {ratio.median:6.2f}", flush=True)
    return rows


def _op_models(channels: int) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """The op with its function, and the floor; both X, residual -> Y."""
    rng = np.random.default_rng(1)
    shape = (COMPONENTS, channels)
    tables = {
        "tau": rng.dirichlet(np.ones(COMPONENTS)),
        "mean": rng.normal(size=shape),
        "var": rng.uniform(0.5, 2.0, shape),
        "scale": rng.normal(size=shape),
        "bias": rng.normal(size=shape),
    }
    initializers = [onnx.numpy_helper.from_array(value.astype(np.float32), name) for name, value in tables.items()]
    node = helper.make_node(
        ADD_RELU.op_type, ["X", "residual", *TABLES], ["Y"], domain=DOMAIN, density_scale=channels**-0.5
    )
    add, relu = helper.make_node("Add", ["X", "residual"], ["sum"]), helper.make_node("Relu", ["sum"], ["Y"])
    function = function_body(ADD_RELU, with_posterior=False)
    return _model([node], channels, initializers, [function]), _model([add, relu], channels, [], [])


def _model(
    nodes: list[onnx.NodeProto],
    channels: int,
    initializers: list[onnx.TensorProto],
    functions: list[onnx.FunctionProto],
) -> onnx.ModelProto:
    axes = ["batch", channels, "height", "width"]
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, axes) for name in ("X", "residual")]
    output = helper.make_tensor_value_info("Y", TensorProto.FLOAT, axes)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, VERSION)]
    graph = helper.make_graph(nodes, "op", inputs, [output], initializers)
    return helper.make_model(graph, functions=functions, opset_imports=opsets, ir_version=IR_VERSION)


def _session(model: onnx.ModelProto, threads: int, *, fused: bool) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    library = native_library()
    if fused and library is not None:
        options.register_custom_ops_library(str(library.path))
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _halves(session: Any, channels: int) -> Callable[[Array], Array]:
    """Images carry X and the residual side by side; the arrays are cut once a batch, outside of what is timed."""
    cut: dict[int, tuple[Array, dict[str, Array]]] = {}  # by batch size

    def run(images: Array) -> Array:
        source, feeds = cut.get(len(images), (None, {}))
        if source is not images:
            feeds = {
                "X": np.ascontiguousarray(images[:, :channels]),
                "residual": np.ascontiguousarray(images[:, channels:]),
            }
            cut[len(images)] = images, feeds
        (y,) = session.run(None, feeds)
        return np.asarray(y).reshape(len(images), -1)

    return run


def _logits(session: Any) -> Callable[[Array], Array]:
    def run(images: Array) -> Array:
        return np.asarray(session.run(["logits"], {"images": images})[0])

    return run


if __name__ == "__main__":
    main()
