"""What int8 and float16 files cost and gain: time beside the float32 batch-norm twin, accuracy, size. Trains nothing.

Run it with ``python benchmarks/precision.py MODEL.pt --data DIR [--calibration DIR] [--threads N] [--rounds R]
[--max-drop POINTS] [--json FILE]``. The checkpoint is exported in every precision through the same gates as by
cbn-export; its batch-norm twin (random weights, statistics of the sample images, batch norm folded into the
convolutions by onnxruntime, or before quantisation) is the float32 reference and, quantised in the same way, the floor
that an int8 network without mixture layers sets. Everything runs in onnxruntime as a server would run it, is checked
before it is timed, and is timed in interleaved rounds (cbn_deploy.benchmark).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from cbn_deploy.benchmark import Candidate, Plan, benchmark, paired_ratio, summarize
from cbn_deploy.checkpoint import Checkpoint, load_checkpoint
from cbn_deploy.machine import describe_machine, is_busy
from cbn_deploy.runtime import Session
from cbn_deploy.runtime.factory import open_session
from export import ExportOptions, export_checkpoint
from export.bench.networks import Network, bench_images, twin_network
from export.precision import PrecisionReport
from export.precision.fold import fold_batch_norm
from export.precision.int8 import quantize_int8
from export.to_onnx import build_graph

BATCH_SIZES = (1, 8, 32)
REFERENCE = "bn/fp32"
Array = NDArray[np.float32]


def main() -> None:
    """Measure and print; with ``--json`` also write what was measured."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    machine = describe_machine(["onnxruntime", "onnx", "numpy", "torch"])
    print(f"{machine['cpu']}, {arguments.threads} threads")
    if is_busy(machine):
        print(f"The machine is busy (load {machine['load_average']:.1f}): read the ratios, not the times.")
    checkpoint = load_checkpoint(arguments.model)
    images, origin = bench_images(checkpoint)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        files, reports = _cbn_files(arguments, Path(folder))
        files |= _twin_files(checkpoint, twin_network(checkpoint, images), Path(folder))
        sessions = {
            name: stack.enter_context(open_session(path, threads=arguments.threads)) for name, path in files.items()
        }
        sizes = {name: path.stat().st_size for name, path in files.items()}
        rows = _time(sessions, images, Plan(rounds=arguments.rounds, block_ms=20.0))
        paths = {name: session.describe().kernel_path for name, session in sessions.items()}
    accuracy = {name: _accuracy(report) for name, report in reports.items()}
    if arguments.json is not None:
        result = {
            "machine": machine,
            "threads": arguments.threads,
            "model": {"architecture": checkpoint.architecture.name, "components": checkpoint.description.components},
            "images": origin,
            "bytes": sizes,
            "kernel_paths": paths,
            "accuracy": accuracy,
            "rows": rows,
        }
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, metavar="MODEL.pt")
    parser.add_argument("--data", type=Path, required=True, help="labelled test images, as for cbn-eval (or digits)")
    parser.add_argument("--calibration", type=Path, help="images that set the ranges; by default training images")
    parser.add_argument("--max-drop", type=float, default=100.0, help="points of balanced top-1 that a file may lose")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", type=Path)
    arguments: argparse.Namespace = parser.parse_args()
    return arguments


def _cbn_files(arguments: argparse.Namespace, folder: Path) -> tuple[dict[str, Path], dict[str, PrecisionReport]]:
    """The checkpoint in every precision, and what the accuracy gate measured."""
    files, reports = {}, {}
    for precision in ("fp32", "int8", "fp16"):
        lowered = precision != "fp32"
        options = ExportOptions(
            precision=precision,
            data=arguments.data if lowered else None,
            calibration=arguments.calibration if precision == "int8" else None,
            max_drop=arguments.max_drop,
            allow_rounding=True,
        )
        result = export_checkpoint(arguments.model, folder / f"cbn-{precision}.onnx", options)
        files[f"cbn/{precision}"] = result.path
        if isinstance(result.parity, PrecisionReport):
            reports[f"cbn/{precision}"] = result.parity
            print(f"cbn/{precision:5s}" + "".join(f"  {r.group} {r.drop:+.2f}" for r in result.parity.accuracy.rows))
    return files, reports


def _twin_files(checkpoint: Checkpoint, twin: Network, folder: Path) -> dict[str, Path]:
    preprocessing = twin.description.preprocessing
    graph = build_graph(twin.module, torch.zeros(1, 3, preprocessing.height, preprocessing.width))
    if checkpoint.sample_images is None:
        raise SystemExit("The checkpoint carries no sample images; train it anew.")
    int8 = quantize_int8(fold_batch_norm(graph), checkpoint.sample_images.numpy(), preprocessing)
    files = {}
    for name, model in ((REFERENCE, graph), ("bn/int8", int8)):
        proto = ir.serde.serialize_model(model)
        onnx.helper.set_model_props(proto, twin.description.to_metadata())
        files[name] = folder / f"{name.replace('/', '-')}.onnx"
        files[name].write_bytes(proto.SerializeToString())
    return files


def _time(sessions: dict[str, Session], images: Array, plan: Plan) -> list[dict[str, Any]]:
    """Each candidate must give at every batch size what it gives for single images."""
    candidates = []
    for name, session in sessions.items():
        expected = np.concatenate([session.run(images[i : i + 1]).logits for i in range(len(images))])
        limits = 1e-2 * np.maximum(np.abs(expected).max(1), 1.0)
        run = _run(session)
        candidates.append(Candidate(name=name, run=run, expected=expected.astype(np.float64), limits=limits))
    outcome = benchmark(candidates, images, BATCH_SIZES, plan)
    for name, parity in outcome.parity.items():
        if parity.failure:
            raise SystemExit(f"{name}: {parity.failure}")
    rows = []
    print("\nmedian ms of a call, and the ratio to the float32 batch-norm twin (10-90 % of the rounds)")
    for (name, batch_size), calls_ns in outcome.calls_ns.items():
        ratio = paired_ratio(calls_ns, outcome.calls_ns[REFERENCE, batch_size])
        median = summarize(calls_ns, batch_size).median
        rows.append(
            {
                "name": name,
                "batch_size": batch_size,
                "median_ms": median,
                "ratio": ratio.median,
                "ratio_p10": ratio.p10,
                "ratio_p90": ratio.p90,
            }
        )
        print(
            f"batch {batch_size:3d}  {name:9s} {median:9.3f} ms  {ratio.median:5.2f} ({ratio.p10:.2f}-{ratio.p90:.2f})",
            flush=True,
        )
    return rows


def _run(session: Session) -> Any:
    return lambda images: session.run(images).logits


def _accuracy(report: PrecisionReport) -> dict[str, Any]:
    accuracy: dict[str, Any] = report.to_dict()["accuracy"]
    return accuracy | {"calibration": report.to_dict()["calibration"]}


if __name__ == "__main__":
    main()
