"""The harness on candidates whose cost and answers are known by construction."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from cbn_deploy.benchmark import Candidate, Plan, benchmark, check_parity, paired_ratio, summarize

RNG = np.random.default_rng(0)
IMAGES = RNG.standard_normal((5, 3, 4, 4)).astype(np.float32)
WEIGHTS = RNG.standard_normal((48, 3))
EXPECTED = IMAGES.reshape(5, -1).astype(np.float64) @ WEIGHTS
PLAN = Plan(rounds=6, block_ms=0.5)


def linear(images: NDArray[np.float32]) -> NDArray[np.float32]:
    return (images.reshape(len(images), -1) @ WEIGHTS).astype(np.float32)


def make(name: str, run: Callable = linear, limit: float = 1e-4) -> Candidate:
    return Candidate(name=name, run=run, expected=EXPECTED, limits=np.full(len(IMAGES), limit))


def sleeper(seconds: float) -> Callable:
    def run(images: NDArray[np.float32]) -> NDArray[np.float32]:
        time.sleep(seconds)
        return linear(images)

    return run


def off_by(amount: float, at_batch_size: int | None = None) -> Callable:
    def run(images: NDArray[np.float32]) -> NDArray[np.float32]:
        return linear(images) + (amount if at_batch_size in (None, len(images)) else 0.0)

    return run


def test_a_candidate_that_disagrees_is_never_timed():
    calls = []

    def wrong(images: NDArray[np.float32]) -> NDArray[np.float32]:
        calls.append(len(images))
        return linear(images) + np.float32(1e-2)

    outcome = benchmark([make("right"), make("wrong", wrong)], IMAGES, [2], PLAN)
    assert outcome.parity["right"].failure is None
    assert "logits off by up to 0.01, 100 times the limit" in outcome.parity["wrong"].failure
    assert set(outcome.calls_ns) == {("right", 2)}
    assert calls == [2, 2, 2]  # the comparison of five images, and nothing after it


def test_a_disagreement_at_one_batch_size_only_is_found():
    parity = check_parity(make("fragile", off_by(1e-3, at_batch_size=4)), IMAGES, [1, 4])
    assert parity.failure.endswith("at batch size 4")
    assert parity.of_limit == pytest.approx(10, rel=0.01)


def test_a_candidate_that_raises_fails_with_the_first_line_of_its_reason():
    def crash(images: NDArray[np.float32]) -> NDArray[np.float32]:
        raise RuntimeError("no memory\nlong story")

    outcome = benchmark([make("crash", crash), make("right")], IMAGES, [1], PLAN)
    assert outcome.parity["crash"].failure == "stopped at batch size 1 (RuntimeError: no memory)"
    assert ("right", 1) in outcome.calls_ns


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_finite_fail(value):
    def run(images: NDArray[np.float32]) -> NDArray[np.float32]:
        logits = linear(images)
        logits[0, 0] = value
        return logits

    assert check_parity(make("broken", run), IMAGES, [5]).failure is not None


def test_logits_of_the_wrong_shape_fail_even_where_they_would_broadcast():
    parity = check_parity(make("narrow", lambda images: linear(images)[:, :1]), IMAGES, [5])
    assert "expected logits (5, 3), got (5, 1)" in parity.failure


def test_parity_compares_every_image_once_whatever_the_batch_size():
    for batch_size in (1, 2, 5, 8):
        parity = check_parity(make("right"), IMAGES, [batch_size])
        assert parity.failure is None
        assert parity.images == 5
        assert parity.top1_agreement == 1.0
        assert parity.max_difference <= 1e-5


class VirtualClock:
    """Stands still but for the costs that candidates charge to it, so that times are exact on any machine."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.turns: list[str] = []

    def __call__(self) -> int:
        return self.now_ns

    def candidate(self, name: str, cost_ns: int) -> Candidate:
        def run(images: NDArray[np.float32]) -> NDArray[np.float32]:
            self.now_ns += cost_ns * len(images)
            self.turns.append(name)
            return linear(images)

        return make(name, run)


@pytest.fixture
def clock(monkeypatch) -> VirtualClock:
    virtual = VirtualClock()
    monkeypatch.setattr(time, "perf_counter_ns", virtual)
    return virtual


def test_times_are_those_of_the_candidate_at_each_batch_size(clock):
    candidates = [clock.candidate("slow", 3_000_000), clock.candidate("fast", 20_000)]
    outcome = benchmark(candidates, IMAGES, [1, 4], PLAN)
    assert set(outcome.calls_ns) == {("slow", 1), ("fast", 1), ("slow", 4), ("fast", 4)}
    for (name, batch_size), calls_ns in outcome.calls_ns.items():
        assert (calls_ns == {"slow": 3_000_000, "fast": 20_000}[name] * batch_size).all()
    ratio = paired_ratio(outcome.calls_ns["slow", 4], outcome.calls_ns["fast", 4])
    assert (ratio.p10, ratio.median, ratio.p90) == (150, 150, 150)


def test_a_fast_candidate_is_called_until_its_block_is_long_enough(clock):
    candidates = [clock.candidate("fast", 300_000), clock.candidate("slow", 6_000_000)]
    outcome = benchmark(candidates, IMAGES, [1], Plan(rounds=7, block_ms=5.0))
    assert outcome.calls_ns["fast", 1].shape == (7, 17)  # 17 x 0.3 ms is the first to reach 5 ms
    assert outcome.calls_ns["slow", 1].shape == (7, 1)


def test_every_round_runs_each_candidate_once_in_a_changing_order(clock):
    names = ("a", "b", "c")
    benchmark([clock.candidate(name, 10_000_000) for name in names], IMAGES, [1], Plan(rounds=8))
    timed = clock.turns[-8 * 3 * 2 :]  # a turn is one untimed call and one timed one
    assert timed[::2] == timed[1::2]
    rounds = [tuple(timed[start : start + 6 : 2]) for start in range(0, len(timed), 6)]
    assert all(sorted(order) == list(names) for order in rounds)
    assert len(set(rounds)) > 1


def test_a_turn_waits_until_the_threads_of_the_one_before_have_stopped():
    """A worker that spins after its call has returned, as those of onnxruntime and OpenMP do."""
    stop_at, overlaps = [0.0], []
    numbers = RNG.random(20_000)

    def spin() -> None:
        while time.perf_counter() < stop_at[0]:
            np.sort(numbers)  # without Python's lock, which would hold up the turn that must not start

    def spinner(images: NDArray[np.float32]) -> NDArray[np.float32]:
        stop_at[0] = time.perf_counter() + 0.02
        threading.Thread(target=spin).start()
        return linear(images)

    def victim(images: NDArray[np.float32]) -> NDArray[np.float32]:
        overlaps.append(time.perf_counter() < stop_at[0])
        return linear(images)

    benchmark([make("spinner", spinner), make("victim", victim)], IMAGES, [5], Plan(rounds=8, block_ms=0.001))
    timed = overlaps[-16:]  # eight rounds of one untimed and one timed call
    assert sum(timed) <= 4  # more than half of them without the rest


def test_the_real_clock_sees_real_time():
    outcome = benchmark([make("sleeper", sleeper(0.002))], IMAGES, [1], PLAN)
    assert outcome.calls_ns["sleeper", 1].min() >= 2_000_000


def test_the_timed_batch_repeats_the_images_to_its_size():
    sizes = set()

    def run(images: NDArray[np.float32]) -> NDArray[np.float32]:
        sizes.add(images.shape)
        assert images.flags.c_contiguous
        np.testing.assert_array_equal(images, IMAGES[np.arange(len(images)) % 5])
        return linear(images)

    benchmark([make("right", run)], IMAGES, [5, 12], PLAN)
    assert sizes == {(5, 3, 4, 4), (12, 3, 4, 4)}


def test_the_garbage_collector_sleeps_while_calls_are_timed_and_wakes_after():
    seen = []

    def run(images: NDArray[np.float32]) -> NDArray[np.float32]:
        seen.append(gc.isenabled())
        return linear(images)

    benchmark([make("right", run)], IMAGES, [1], Plan(rounds=2, block_ms=0.01))
    assert seen[-1] is False
    assert gc.isenabled()


def test_progress_rises_to_one_in_both_stages():
    seen: dict[str, list[float]] = {"parity": [], "timing": []}
    benchmark(
        [make("a"), make("b")], IMAGES, [1, 3], PLAN, progress=lambda stage, fraction: seen[stage].append(fraction)
    )
    for fractions in seen.values():
        assert fractions == sorted(fractions)
        assert fractions[-1] == 1.0
        assert len(fractions) >= 3


def test_summary_is_in_milliseconds_and_images_a_second():
    calls_ns = (np.arange(1, 102) * 1_000_000).reshape(1, 101)  # 1 ms .. 101 ms
    summary = summarize(calls_ns, batch_size=8)
    assert (summary.median, summary.p10, summary.p90, summary.p99, summary.iqr) == (51, 11, 91, 100, 50)
    assert summary.images_per_second == pytest.approx(8 / 0.051)
    assert summary.calls == 101


def test_ratio_is_taken_within_rounds_so_that_a_slow_phase_of_the_machine_cancels():
    drift = np.array([[1], [1], [10], [10], [3]])
    base = drift * np.array([[100, 100, 5000]])  # medians 100 x drift, with an outlier in each round
    ratio = paired_ratio(drift * np.array([[250, 250]]), base)
    assert (ratio.median, ratio.p10, ratio.p90) == (2.5, 2.5, 2.5)


def test_ratio_needs_the_same_rounds():
    with pytest.raises(ValueError, match="equal numbers of rounds"):
        paired_ratio(np.ones((3, 1), np.int64), np.ones((2, 1), np.int64))


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="unique names"):
        benchmark([make("a"), make("a")], IMAGES, [1], PLAN)
    with pytest.raises(ValueError, match="batch sizes"):
        benchmark([make("a")], IMAGES, [0], PLAN)
    with pytest.raises(ValueError, match="images"):
        benchmark([make("a")], IMAGES[:0], [1], PLAN)
    with pytest.raises(ValueError, match="rounds"):
        Plan(rounds=0)
    with pytest.raises(ValueError, match="block_ms"):
        Plan(block_ms=float("nan"))


def test_nothing_is_timed_when_nothing_agrees():
    outcome = benchmark([make("wrong", off_by(1.0))], IMAGES, [1], PLAN)
    assert outcome.calls_ns == {}
