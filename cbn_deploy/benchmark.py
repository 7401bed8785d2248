"""Time candidates that should give the same answers: parity first, then interleaved rounds.

Every round runs each candidate once, in a freshly shuffled order, so that whatever slows the machine for a while slows
all of them, and a ratio of two candidates is taken within rounds. Models and runtimes are the caller's business: a
candidate is a name, a function from images to logits, and the logits it must return.
"""

from __future__ import annotations

import gc
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Candidate",
    "DeviceClock",
    "Outcome",
    "Parity",
    "Plan",
    "Progress",
    "Ratio",
    "Summary",
    "benchmark",
    "check_parity",
    "paired_ratio",
    "summarize",
]

Images = NDArray[np.float32]
Logits = NDArray[np.floating]
Progress = Callable[[str, float], None]
# (images, calls) -> milliseconds of each call on the device, without copies to and from it.
DeviceClock = Callable[[Images, int], Sequence[float]]

_REST_STEP_S = 0.002
_LONGEST_REST_S = 0.05


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One way to compute the logits.

    Attributes:
        name: unique among the candidates of a benchmark.
        run: images float32 (B, 3, H, W) -> logits (B, K); called with every batch size of the benchmark.
        expected: (n, K) float64, the right logits of the benchmark's n images.
        limits: (n,) float64, how far a logit of each image may be off.
        device_clock: for a runtime on a GPU, which is timed by it too.
    """

    name: str
    run: Callable[[Images], Logits]
    expected: NDArray[np.float64]
    limits: NDArray[np.float64]
    device_clock: DeviceClock | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How to measure.

    Attributes:
        rounds: interleaved rounds for each batch size.
        warmup_calls: untimed calls of each candidate before the first round.
        block_ms: a candidate's turn in a round lasts at least this long; fast candidates are called repeatedly.
        seed: of the shuffled order.
    """

    rounds: int = 30
    warmup_calls: int = 3
    block_ms: float = 5.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.warmup_calls < 1 or not self.block_ms > 0:
            raise ValueError(f"rounds, warmup_calls and block_ms must be above 0, got {self}")


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How a candidate's logits compare with the expected ones.

    Attributes:
        images: how many images were compared, for every batch size.
        max_difference: largest |logit - expected|; NaN if the candidate crashed or its logits are not finite.
        of_limit: largest |logit - expected| / limit of the image; NaN likewise.
        top1_agreement: fraction of images with the same largest logit.
        failure: why the candidate must not be timed; ``None`` if it may.
    """

    images: int
    max_difference: float
    of_limit: float
    top1_agreement: float
    failure: str | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What :func:`benchmark` found.

    Attributes:
        parity: candidate name -> its comparison.
        calls_ns: (candidate name, batch size) -> int64 (rounds, calls), nanoseconds of every timed call. Candidates
            that failed are absent.
        device_ms: likewise -> float64 (calls,), milliseconds by the device's clock, of those that have one.
    """

    parity: Mapping[str, Parity]
    calls_ns: Mapping[tuple[str, int], NDArray[np.int64]]
    device_ms: Mapping[tuple[str, int], NDArray[np.float64]]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Latency of one batch over all timed calls, in milliseconds; ``iqr`` is the width of the middle half."""

    median: float
    p10: float
    p90: float
    p99: float
    iqr: float
    images_per_second: float
    calls: int


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """A quotient of two candidates' latencies: median and 10-90 % interval over the rounds."""

    median: float
    p10: float
    p90: float


def benchmark(
    candidates: Sequence[Candidate],
    images: Images,
    batch_sizes: Sequence[int],
    plan: Plan,
    progress: Progress | None = None,
) -> Outcome:
    """Compare every candidate with its expected logits, then time those that agree.

    Args:
        candidates: in any order; names unique.
        images: (n, 3, H, W), used by the comparison and, repeated as needed, as the timed input.
        batch_sizes: each at least 1. A candidate is compared at every one of them before any is timed.
        plan: rounds, warm-up, block length.
        progress: called with the stage, "parity" or "timing", and the fraction of it that is done. Time spent in it
            is not measured.

    Raises:
        ValueError: no images, duplicate names, or a batch size below 1.
    """
    report = progress or _silent
    names = [candidate.name for candidate in candidates]
    if len(set(names)) != len(names) or len(images) < 1 or min(batch_sizes, default=0) < 1:
        raise ValueError(
            f"unique names, images and batch sizes >= 1 are needed, got {names}, {len(images)} images, {batch_sizes}"
        )
    parity = {}
    for done, candidate in enumerate(candidates):
        report("parity", done / len(candidates))
        parity[candidate.name] = check_parity(candidate, images, batch_sizes)
    report("parity", 1.0)
    admitted = [candidate for candidate in candidates if parity[candidate.name].failure is None]
    return Outcome(
        parity=parity,
        calls_ns=_time_all(admitted, images, batch_sizes, plan, report),
        device_ms=_time_on_device(admitted, images, batch_sizes, plan),
    )


def check_parity(candidate: Candidate, images: Images, batch_sizes: Sequence[int]) -> Parity:
    """Compare the logits of all images, computed at each batch size, with the expected ones."""
    difference, of_limit, agreement = 0.0, 0.0, 1.0
    failure = None
    for batch_size in batch_sizes:
        try:
            logits = _run_batched(candidate, images, batch_size)
        except Exception as error:  # noqa: BLE001 - whatever a runtime raises, the other candidates are still measured
            difference, of_limit, agreement = math.nan, math.nan, 0.0
            failure = f"stopped at batch size {batch_size} ({_first_line(error)})"
            break
        gaps = np.abs(logits - candidate.expected).max(axis=1)
        difference = float(np.maximum(difference, gaps.max()))  # unlike max(), keeps NaN
        of_limit = float(np.maximum(of_limit, (gaps / candidate.limits).max()))
        agreement = min(agreement, float((logits.argmax(1) == candidate.expected.argmax(1)).mean()))
        if not of_limit <= 1.0:
            failure = (
                f"logits off by up to {difference:.2g}, {of_limit:.3g} times the limit, at batch size {batch_size}"
            )
            break
    return Parity(
        images=len(images), max_difference=difference, of_limit=of_limit, top1_agreement=agreement, failure=failure
    )


def summarize(calls_ns: NDArray[np.int64], batch_size: int) -> Summary:
    """Percentiles over all calls of all rounds; throughput is ``batch_size`` / median."""
    milliseconds = calls_ns.ravel() / 1e6
    p10, p25, median, p75, p90, p99 = (float(v) for v in np.percentile(milliseconds, [10, 25, 50, 75, 90, 99]))
    return Summary(
        median=median,
        p10=p10,
        p90=p90,
        p99=p99,
        iqr=p75 - p25,
        images_per_second=1e3 * batch_size / median,
        calls=milliseconds.size,
    )


def paired_ratio(numerator_ns: NDArray[np.int64], denominator_ns: NDArray[np.int64]) -> Ratio:
    """Quotient of the two candidates' medians within each round: its median and 10-90 % interval over the rounds.

    Args:
        numerator_ns: (rounds, calls) of one candidate.
        denominator_ns: (rounds, calls) of the other, from the same rounds; the number of calls may differ.

    Raises:
        ValueError: different numbers of rounds.
    """
    if len(numerator_ns) != len(denominator_ns):
        raise ValueError(f"expected equal numbers of rounds, got {len(numerator_ns)} and {len(denominator_ns)}")
    quotients = np.median(numerator_ns, axis=1) / np.median(denominator_ns, axis=1)
    p10, median, p90 = (float(v) for v in np.percentile(quotients, [10, 50, 90]))
    return Ratio(median=median, p10=p10, p90=p90)


def _silent(stage: str, fraction: float) -> None:
    del stage, fraction


def _run_batched(candidate: Candidate, images: Images, batch_size: int) -> Logits:
    """Logits of all images in whole batches: the last one is filled up from the start."""
    whole = _repeat(images, math.ceil(len(images) / batch_size) * batch_size)
    batches = [candidate.run(whole[start : start + batch_size]) for start in range(0, len(whole), batch_size)]
    logits = np.concatenate(batches)[: len(images)]
    if logits.shape != candidate.expected.shape:
        raise ValueError(f"expected logits {candidate.expected.shape}, got {logits.shape}")
    return logits


def _repeat(images: Images, count: int) -> Images:
    return np.ascontiguousarray(images[np.arange(count) % len(images)])


def _time_all(
    candidates: Sequence[Candidate], images: Images, batch_sizes: Sequence[int], plan: Plan, progress: Progress
) -> dict[tuple[str, int], NDArray[np.int64]]:
    blocks = {
        batch_size: [_Block(candidate, _repeat(images, batch_size), plan) for candidate in candidates]
        for batch_size in batch_sizes
    }
    round_ns = {batch_size: sum(block.expected_ns for block in blocks[batch_size]) for batch_size in batch_sizes}
    total_ns, done_ns = plan.rounds * sum(round_ns.values()), 0
    order = random.Random(plan.seed)
    calls_ns = {}
    for batch_size in batch_sizes:
        rows: dict[str, list[NDArray[np.int64]]] = {candidate.name: [] for candidate in candidates}
        with _garbage_collector_paused():
            for _ in range(plan.rounds):
                progress("timing", done_ns / max(total_ns, 1))
                for block in order.sample(blocks[batch_size], len(candidates)):
                    rows[block.name].append(block.time())
                done_ns += round_ns[batch_size]
        calls_ns.update({(name, batch_size): np.stack(times) for name, times in rows.items()})
    progress("timing", 1.0)
    return calls_ns


def _time_on_device(
    candidates: Sequence[Candidate], images: Images, batch_sizes: Sequence[int], plan: Plan
) -> dict[tuple[str, int], NDArray[np.float64]]:
    """As many calls in a row as there are rounds: nothing else is on the device, so there is nothing to interleave."""
    return {
        (candidate.name, batch_size): np.array(candidate.device_clock(_repeat(images, batch_size), plan.rounds))
        for batch_size in batch_sizes
        for candidate in candidates
        if candidate.device_clock is not None
    }


class _Block:
    """One candidate's turn in a round: as many calls as fill ``plan.block_ms``.

    Attributes:
        name: the candidate's.
        expected_ns: how long a turn takes, roughly.
    """

    def __init__(self, candidate: Candidate, batch: Images, plan: Plan) -> None:
        self.name = candidate.name
        self._run = candidate.run
        self._batch = batch
        self._calls = plan.warmup_calls
        fastest = int(self.time().min())
        self._calls = max(1, math.ceil(plan.block_ms * 1e6 / max(fastest, 1)))
        start = time.perf_counter_ns()
        self.time()
        self.expected_ns = time.perf_counter_ns() - start

    def time(self) -> NDArray[np.int64]:
        """Nanoseconds of each call, after a rest and a call that is not timed: the caches are another candidate's."""
        run, batch, clock = self._run, self._batch, time.perf_counter_ns
        _rest()
        run(batch)
        marks = [clock()]
        for _ in range(self._calls):
            run(batch)
            marks.append(clock())
        marks_ns = np.array(marks, dtype=np.int64)
        return marks_ns[1:] - marks_ns[:-1]


def _rest() -> None:
    """Wait until this process is idle: worker threads spin for more work for some 10 ms after a call.

    Measured: without it OpenVINO's calls after a turn of onnxruntime took two to three times as long.
    """
    deadline = time.monotonic() + _LONGEST_REST_S
    idle_steps = 0
    # Twice in a row: on a busy machine a spinning thread may get no CPU for one step.
    while idle_steps < 2 and time.monotonic() < deadline:
        before = time.process_time()
        time.sleep(_REST_STEP_S)
        idle_steps = idle_steps + 1 if time.process_time() - before < 0.1 * _REST_STEP_S else 0


@contextmanager
def _garbage_collector_paused() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
