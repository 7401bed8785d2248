"""What a benchmark found, as plain data: the JSON file, and what table and plot are drawn from."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cbn_deploy.benchmark import Outcome, Parity, Ratio, Summary, paired_ratio, summarize
from export.bench.candidates import RUNTIMES, Entry
from export.bench.gpu import ClockKind

__all__ = ["BenchReport", "CandidateReport", "Timing", "candidate_reports", "three_digits", "timings", "to_json"]

FORMAT = "cbn-bench"
VERSION = 1
_PAPER = "cbn/eager-paper"

Status = Literal["measured", "failed", "skipped"]


@dataclass(frozen=True, kw_only=True)
class CandidateReport:
    """One network in one runtime.

    Attributes:
        name: "NETWORK/RUNTIME".
        network: "cbn" or "bn".
        runtime: a key of ``RUNTIMES``.
        title: of the runtime, for people.
        version: of the runtime's package.
        kernel_path: which code computed the layer.
        clock: what told the time on the device: its "events", or the "host"'s clock, launching included; ``None``
            without a device.
        status: "failed" if it disagreed or crashed, "skipped" if it could not be built.
        reason: why it was not measured, one sentence or phrase; ``None`` if it was.
        parity: ``None`` if skipped.
    """

    name: str
    network: str
    runtime: str
    title: str
    version: str
    kernel_path: str
    clock: ClockKind | None
    status: Status
    reason: str | None
    parity: Parity | None


@dataclass(frozen=True, kw_only=True)
class Timing:
    """A candidate at one batch size.

    Attributes:
        candidate: its name.
        batch_size: images in a call.
        latency: milliseconds a batch.
        times_twin: this latency over the batch-norm twin's in the same runtime; ``None`` for a twin or without one.
        speedup_over_paper: latency of eager PyTorch with the paper's formula over this one; other CBN candidates only.
        calls_ns: (rounds, calls), nanoseconds of every timed call.
        device: milliseconds a batch on the device by the candidate's ``clock``, copies aside; ``None`` without one.
        device_times_twin: ``device`` over the twin's, quotient of the medians.
    """

    candidate: str
    batch_size: int
    latency: Summary
    times_twin: Ratio | None
    speedup_over_paper: Ratio | None
    calls_ns: NDArray[np.int64]
    device: Summary | None = None
    device_times_twin: float | None = None


@dataclass(frozen=True, kw_only=True)
class BenchReport:
    """Everything that makes the numbers mean something.

    Attributes:
        created: ISO 8601, UTC.
        model: file, SHA-256, architecture, components, classes, input size.
        machine: see :func:`cbn_deploy.machine.describe_machine`.
        parameters: threads, rounds, batch sizes, warm-up, block length, seed, images.
        candidates: in table order, also those that were not measured.
        timings: of the measured ones, by batch size, then in table order.
    """

    created: str
    model: Mapping[str, Any]
    machine: Mapping[str, Any]
    parameters: Mapping[str, Any]
    candidates: Sequence[CandidateReport]
    timings: Sequence[Timing]

    def candidate(self, name: str) -> CandidateReport:
        """The candidate of that name."""
        return next(candidate for candidate in self.candidates if candidate.name == name)


def candidate_reports(entries: Sequence[Entry], parity: Mapping[str, Parity]) -> list[CandidateReport]:
    """One row an entry; ``parity`` has those that were run."""
    return [_candidate_report(entry, parity.get(entry.name)) for entry in entries]


def timings(entries: Sequence[Entry], outcome: Outcome, batch_sizes: Sequence[int]) -> list[Timing]:
    """One row a measured candidate and batch size, with its ratios from the same rounds."""
    rows = []
    for batch_size in batch_sizes:
        for entry in entries:
            calls_ns = outcome.calls_ns.get((entry.name, batch_size))
            if calls_ns is None:
                continue
            twin = outcome.calls_ns.get((entry.twin, batch_size)) if entry.network == "cbn" else None
            is_faster_form = entry.network == "cbn" and entry.name != _PAPER
            paper = outcome.calls_ns.get((_PAPER, batch_size)) if is_faster_form else None
            rows.append(
                Timing(
                    candidate=entry.name,
                    batch_size=batch_size,
                    latency=summarize(calls_ns, batch_size),
                    times_twin=None if twin is None else paired_ratio(calls_ns, twin),
                    speedup_over_paper=None if paper is None else paired_ratio(paper, calls_ns),
                    calls_ns=calls_ns,
                    device=_device_summary(outcome, entry.name, batch_size),
                    device_times_twin=_device_ratio(outcome, entry, batch_size),
                )
            )
    return rows


def _device_summary(outcome: Outcome, name: str, batch_size: int) -> Summary | None:
    times = outcome.device_ms.get((name, batch_size))
    return None if times is None else summarize((times * 1e6).astype(np.int64), batch_size)


def _device_ratio(outcome: Outcome, entry: Entry, batch_size: int) -> float | None:
    own, twin = (outcome.device_ms.get((name, batch_size)) for name in (entry.name, entry.twin))
    if entry.network != "cbn" or own is None or twin is None:
        return None
    return float(np.median(own) / np.median(twin))


def to_json(report: BenchReport) -> str:
    """The JSON file: summaries in milliseconds, ``calls_ns`` with every timed call; NaN is null; one timing a line."""
    plain = {"format": FORMAT, "version": VERSION, **_plain(report)}
    rows = [json.dumps(row, allow_nan=False) for row in plain.pop("timings")]
    head = json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False)
    return f'{head[:-2]},\n  "timings": [\n    ' + ",\n    ".join(rows) + "\n  ]\n}\n"


def three_digits(milliseconds: float) -> str:
    """ "0.852", "12.8", "602", "2042": three significant digits, never an exponent."""
    return f"{milliseconds:#.3g}".rstrip(".") if milliseconds < 999.5 else f"{milliseconds:.0f}"


def _candidate_report(entry: Entry, parity: Parity | None) -> CandidateReport:
    status: Status = "skipped" if parity is None else "failed" if parity.failure is not None else "measured"
    return CandidateReport(
        name=entry.name,
        network=entry.network,
        runtime=entry.runtime,
        title=RUNTIMES[entry.runtime].title,
        version=entry.version,
        kernel_path=entry.kernel_path,
        clock=entry.clock,
        status=status,
        reason=entry.skipped if parity is None else parity.failure,
        parity=parity,
    )


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
