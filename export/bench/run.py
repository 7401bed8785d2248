"""From a checkpoint file to a finished report."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cbn_deploy.benchmark import Plan, Progress, benchmark
from cbn_deploy.checkpoint import Checkpoint, file_sha256, load_checkpoint
from cbn_deploy.errors import ParityError, RuntimeUnavailableError
from cbn_deploy.machine import describe_machine
from cbn_deploy.runtime.factory import available_cpus
from export.bench.candidates import RUNTIMES, Suite, prepare
from export.bench.report import BenchReport, candidate_reports, timings

__all__ = ["DEFAULT_BATCH_SIZES", "BenchOptions", "bench_checkpoint"]

DEFAULT_BATCH_SIZES = (1, 8, 32)
_PACKAGES = (
    "torch",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "triton",
    "tensorrt",
    "onnx",
    "onnxscript",
    "onnx-ir",
    "numpy",
)


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """What to measure.

    Attributes:
        runtimes: keys of ``RUNTIMES``, in table order.
        batch_sizes: images in a call.
        threads: of every runtime; ``None``: all CPUs that this process may use.
        rounds: interleaved rounds for each batch size.
    """

    runtimes: tuple[str, ...] = tuple(RUNTIMES)
    batch_sizes: tuple[int, ...] = DEFAULT_BATCH_SIZES
    threads: int | None = None
    rounds: int = Plan.rounds


def bench_checkpoint(model: Path, options: BenchOptions | None = None, progress: Progress | None = None) -> BenchReport:
    """Compare every candidate with the checkpoint in float64, then time those that agree.

    Args:
        model: a ``model.pt`` of a CBN network.
        options: see :class:`BenchOptions`.
        progress: called with the stage, "preparing", "parity" or "timing", and the fraction of it that is done.

    Raises:
        CheckpointError: the file is missing, damaged, untrusted, or a plain batch-norm model.
        RuntimeUnavailableError: none of the runtimes can run here.
        ParityError: no candidate agrees with the checkpoint.
    """
    options = options or BenchOptions()
    model = Path(model)
    checkpoint = load_checkpoint(model)
    threads = options.threads or available_cpus()
    plan = Plan(rounds=options.rounds)
    machine = describe_machine(_PACKAGES)
    with prepare(checkpoint, options.runtimes, threads, max(options.batch_sizes), progress) as suite:
        candidates = [entry.candidate for entry in suite.entries if entry.candidate is not None]
        if not candidates:
            reasons = " ".join(sorted({entry.skipped for entry in suite.entries if entry.skipped}))
            raise RuntimeUnavailableError(f"None of the runtimes can run here: {reasons}")
        outcome = benchmark(candidates, suite.images, options.batch_sizes, plan, progress)
    if not outcome.calls_ns:
        reasons = "; ".join(f"{name}: {parity.failure}" for name, parity in outcome.parity.items())
        raise ParityError(f"No candidate agrees with the checkpoint, so nothing was timed ({reasons}).")
    return BenchReport(
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        model=_describe_model(model, checkpoint),
        machine=machine,
        parameters=_parameters(options, threads, plan, suite),
        candidates=candidate_reports(suite.entries, outcome.parity),
        timings=timings(suite.entries, outcome, options.batch_sizes),
    )


def _describe_model(path: Path, checkpoint: Checkpoint) -> dict[str, Any]:
    description = checkpoint.description
    return {
        "file": path.name,
        "sha256": file_sha256(path),
        "architecture": description.architecture,
        "components": description.components,
        "classes": len(description.class_names),
        "input": [3, description.preprocessing.height, description.preprocessing.width],
    }


def _parameters(options: BenchOptions, threads: int, plan: Plan, suite: Suite) -> dict[str, Any]:
    return {
        "runtimes": list(options.runtimes),
        "batch_sizes": list(options.batch_sizes),
        "threads": threads,
        "rounds": plan.rounds,
        "warmup_calls": plan.warmup_calls,
        "block_ms": plan.block_ms,
        "seed": plan.seed,
        "images": suite.images_origin,
        "precision": "float32",
    }
