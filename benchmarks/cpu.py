"""What CBN costs on a CPU: every ratio that this project promises, from one run, with the machine and the versions.

    python benchmarks/cpu.py [--threads N] [--rounds R] [--only SECTION ...] [--json FILE] [--plot FILE]

Networks have random weights and statistics of real activations: how long a network takes does not depend on them.
Every candidate's logits are checked before it is timed, and candidates are timed in interleaved rounds
(cbn_deploy.benchmark), so a ratio compares what the machine did at the same time. The accuracy of int8 is not measured
here; `cbn-export --precision int8` judges it for every file. A training step has its own training_step.py.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import onnx_ir as ir
import onnxruntime
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from roofline import measure as measure_roofline

from cbn_deploy.atomic import atomic_path, atomic_write_bytes
from cbn_deploy.benchmark import Candidate, Outcome, Plan, benchmark, paired_ratio, summarize
from cbn_deploy.machine import describe_machine, is_busy
from cbn_deploy.models import ArchitectureConfig, bn_twin, create_model
from cbn_deploy.native_library import native_library
from cbn_deploy.norm import NormConfig, freeze
from cbn_deploy.runtime.description import Preprocessing
from cbn_deploy.runtime.native_layouts import native_layout_session
from export.bench.networks import paper_formula
from export.precision.fold import fold_batch_norm
from export.precision.int8 import quantize_int8
from export.to_onnx import build_graph, to_onnx

Array = NDArray[np.float32]
Run = Callable[[Array], Array]

# (network, numerator, denominator, batch sizes, the most or the least that is promised)
TARGETS = (
    ("resnet32", "CBN fused", "BN", {1: 1.25, 8: 1.10, 32: 1.10}, "<="),
    ("resnet50", "CBN fused", "BN", {1: 1.10, 8: 1.10}, "<="),
    ("resnet32", "CBN portable", "CBN fused", {32: 3.0}, ">="),
    ("resnet32", "CBN eager, paper's formula", "CBN fused", {32: 10.0}, ">="),
    ("resnet32", "CBN OpenVINO", "CBN fused", {32: 3.0}, ">="),
    ("resnet32", "CBN int8", "BN", {1: 0.7, 8: 0.7, 32: 0.7}, "<="),
)
NETWORKS = {"resnet32": (32, 10, (1, 8, 32)), "resnet50": (224, 1000, (1, 8))}
PREPROCESSING = Preprocessing(height=32, width=32, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


def main() -> None:
    """Measure and print; with ``--json`` and ``--plot`` also write what was measured."""
    arguments = _arguments()
    library = native_library()
    if library is None:
        raise SystemExit("The native library is absent or turned off.")
    torch.set_num_threads(arguments.threads)
    machine = describe_machine(["onnxruntime", "openvino", "numpy", "torch"])
    print(f"{machine['cpu']}, {arguments.threads} threads, kernels for {library.instruction_set}")
    if is_busy(machine):
        print(f"The machine is busy (load {machine['load_average']:.1f}): read the ratios, not the times.")
    result: dict[str, Any] = {"machine": machine, "threads": arguments.threads, "rounds": arguments.rounds}
    result["instruction_set"] = library.instruction_set
    result["times"] = [
        row
        for name in NETWORKS
        if name in arguments.only
        for row in _network(name, arguments.threads, arguments.rounds)
    ]
    result["ratios"] = _ratios(result["times"])
    if "roofline" in arguments.only:
        result["roofline"] = measure_roofline(library, arguments.rounds)
    for row in result["times"]:
        del row["calls_ns"]
    if arguments.json is not None:
        atomic_write_bytes(arguments.json, f"{json.dumps(result, indent=1)}\n".encode())
    if arguments.plot is not None:
        _save_plot(result, arguments.plot)


def _arguments() -> argparse.Namespace:
    sections = [*NETWORKS, "roofline"]
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0],
        epilog="Example: python benchmarks/cpu.py --threads 2 --json cpu.json --plot cpu.png",
    )
    parser.add_argument("--threads", type=int, default=2, help="of every runtime")
    parser.add_argument("--rounds", type=int, default=30, help="interleaved rounds for every batch size")
    parser.add_argument(
        "--only", nargs="+", choices=sections, default=sections, metavar="SECTION", help="|".join(sections)
    )
    parser.add_argument("--json", type=Path, help="file to write")
    parser.add_argument("--plot", type=Path, help="picture to write")
    return parser.parse_args()


def _network(name: str, threads: int, rounds: int) -> list[dict[str, Any]]:
    side, classes, batch_sizes = NETWORKS[name]
    torch.manual_seed(0)
    config = ArchitectureConfig(name=name, num_classes=classes, norm=NormConfig(components=4))
    images = torch.randn(max(batch_sizes), 3, side, side)
    cbn, twin = (_with_statistics(create_model(c), images) for c in (config, bn_twin(config)))
    runs = {"BN": _bn(twin, images, threads), **_cbn(cbn, images, threads)}
    if name == "resnet32":
        runs |= {"CBN int8": _int8(cbn, images, threads), "BN int8": _int8(twin, images, threads)}
        runs["CBN OpenVINO"] = _openvino(cbn, images, threads)
        runs["CBN eager, paper's formula"] = _eager(paper_formula(freeze(cbn)))
    right = {"BN": _exact(twin, images), "CBN": _exact(cbn, images)}
    candidates = [_candidate(label, run, right[label.split()[0]]) for label, run in runs.items()]
    rows = []
    print(f"\n{name}: median ms a batch, and the ratio to the batch-norm twin")
    for batch_size in batch_sizes:
        # The paper's formula takes gigabytes at ResNet-50's sizes; elsewhere all candidates are compared.
        outcome = benchmark(candidates, images.numpy(), [batch_size], Plan(rounds=rounds, block_ms=20.0))
        rows += _rows(name, batch_size, outcome)
    return rows


def _with_statistics(model: torch.nn.Module, images: torch.Tensor) -> torch.nn.Module:
    with torch.no_grad():
        model.train()(images)
    return model.eval()


def _bn(twin: torch.nn.Module, images: torch.Tensor, threads: int) -> Run:
    content = to_onnx(twin, images[:1]).SerializeToString()
    return _logits(onnxruntime.InferenceSession(content, _options(threads, fused=False)))


def _cbn(cbn: torch.nn.Module, images: torch.Tensor, threads: int) -> dict[str, Run]:
    content = to_onnx(freeze(cbn), images[:1]).SerializeToString()
    session, _ = native_layout_session(content, lambda: _options(threads, fused=True))
    return {
        "CBN fused": _logits(session),
        "CBN fused, planar": _logits(onnxruntime.InferenceSession(content, _options(threads, fused=True))),
        "CBN portable": _logits(onnxruntime.InferenceSession(content, _options(threads, fused=False))),
    }


def _int8(model: torch.nn.Module, images: torch.Tensor, threads: int) -> Run:
    rng = np.random.default_rng(0)
    calibration = rng.integers(0, 256, (64, 32, 32, 3), dtype=np.uint8)
    graph = fold_batch_norm(build_graph(freeze(model), images[:1]))
    content = ir.serde.serialize_model(quantize_int8(graph, calibration, PREPROCESSING)).SerializeToString()
    session, _ = native_layout_session(content, lambda: _options(threads, fused=True))
    return _logits(session)


def _openvino(cbn: torch.nn.Module, images: torch.Tensor, threads: int) -> Run:
    import openvino

    content = to_onnx(freeze(cbn), images[:1], inline_functions=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(content.SerializeToString())
        settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        compiled = openvino.Core().compile_model(path, "CPU", settings)
    request = compiled.create_infer_request()
    return lambda images: np.array(request.infer({0: images})[0])


def _eager(model: torch.nn.Module) -> Run:
    def run(images: Array) -> Array:
        with torch.inference_mode():
            return np.asarray(model(torch.from_numpy(images)).numpy())

    return run


def _options(threads: int, *, fused: bool) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    library = native_library()
    if fused and library is not None:
        options.register_custom_ops_library(str(library.path))
    return options


def _logits(session: Any) -> Run:
    return lambda images: np.asarray(session.run(["logits"], {"images": images})[0])


def _exact(model: torch.nn.Module, images: torch.Tensor) -> NDArray[np.float64]:
    with torch.no_grad():
        logits: NDArray[np.float64] = model.double()(images.double()).numpy()
    model.float()
    return logits


def _candidate(name: str, run: Run, expected: NDArray[np.float64]) -> Candidate:
    # 8-bit convolutions of a network with random weights are compared for gross errors only.
    share = 0.5 if "int8" in name else 1e-3
    return Candidate(name=name, run=run, expected=expected, limits=share * np.maximum(np.abs(expected).max(1), 1.0))


def _rows(network: str, batch_size: int, outcome: Outcome) -> list[dict[str, Any]]:
    failures = {name: parity.failure for name, parity in outcome.parity.items() if parity.failure}
    if failures:
        raise SystemExit(f"{network}: {failures}")
    rows = []
    for (name, _), calls_ns in outcome.calls_ns.items():
        ratio = paired_ratio(calls_ns, outcome.calls_ns["BN", batch_size])
        summary = summarize(calls_ns, batch_size)
        rows.append(
            {
                "network": network,
                "batch_size": batch_size,
                "name": name,
                "median_ms": summary.median,
                "p10_ms": summary.p10,
                "p90_ms": summary.p90,
                "times_bn": ratio.median,
                "calls_ns": calls_ns,
            }
        )
        print(f"{network} batch {batch_size:3d}  {name:28s} {summary.median:9.3f} ms  {ratio.median:6.2f}", flush=True)
    return rows


def _ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    calls = {(row["network"], row["batch_size"], row["name"]): row["calls_ns"] for row in rows}
    ratios = []
    print("\nratio of medians within a round: median over the rounds, 10-90 % of the rounds, and what is promised")
    for network, numerator, denominator, promises, sign in TARGETS:
        for batch_size, promised in promises.items():
            above, below = (calls.get((network, batch_size, name)) for name in (numerator, denominator))
            if above is None or below is None:
                continue
            ratio = paired_ratio(above, below)
            kept = ratio.median <= promised if sign == "<=" else ratio.median >= promised
            ratios.append(
                {
                    "network": network,
                    "batch_size": batch_size,
                    "of": numerator,
                    "to": denominator,
                    "median": ratio.median,
                    "p10": ratio.p10,
                    "p90": ratio.p90,
                    "target": f"{sign} {promised:g}",
                    "kept": kept,
                }
            )
            print(
                f"{network} batch {batch_size:3d}  {f'{numerator} / {denominator}':46s} {ratio.median:6.2f} "
                f"({ratio.p10:.2f} to {ratio.p90:.2f})  {sign} {promised:g}  {'kept' if kept else 'MISSED'}"
            )
    return ratios


_TICKS = (0.5, 1, 2, 5, 10, 20)


def _save_plot(result: dict[str, Any], path: Path) -> None:
    mpl.use("Agg")
    groups = sorted({(row["network"], row["batch_size"]) for row in result["times"]})
    figure = Figure(figsize=(14, 2.6 * ((len(groups) + 2) // 3)), layout="constrained")
    panels = figure.subplots((len(groups) + 2) // 3, 3, squeeze=False).ravel()
    for panel, (network, batch_size) in zip(panels, groups, strict=False):
        rows = [row for row in result["times"] if (row["network"], row["batch_size"]) == (network, batch_size)]
        rows.sort(key=lambda row: -float(row["median_ms"]))
        colours = [plt.get_cmap("tab10")(7 if row["name"].startswith("BN") else 0) for row in rows]
        bars = panel.barh([row["name"] for row in rows], [row["times_bn"] for row in rows], color=colours)
        panel.bar_label(bars, [f"{row['median_ms']:.3g} ms" for row in rows], padding=3, fontsize=8)
        panel.set_title(f"{network}, batch {batch_size}", fontsize=10)
        panel.set_xlabel("times the batch-norm twin in onnxruntime", fontsize=8)
        panel.set_xscale("log")
        panel.set_xlim(0.3, 40)
        panel.set_xticks(_TICKS, [f"{tick:g}" for tick in _TICKS])
        panel.minorticks_off()
        panel.tick_params(labelsize=8)
        panel.axvline(1.0, color="grey", linewidth=0.8)
    for panel in panels[len(groups) :]:
        panel.set_axis_off()
    figure.suptitle(f"{result['machine']['cpu']}, {result['threads']} threads, float32 unless said", fontsize=10)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")


if __name__ == "__main__":
    main()
