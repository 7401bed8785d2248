"""The batcher, with a session whose runs begin and end when the test says so."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from numpy.typing import NDArray

from cbn_deploy.errors import InputError
from cbn_deploy.runtime import Prediction, Session, SessionInfo
from serving.batching import BatchedPrediction, Batcher, BatchRecord
from serving.errors import ApiError
from serving.inference import InferencePool
from tests.onnx_models import SIZE, describe

Images = NDArray[np.float32]
POISON = -1.0
PATIENCE = 30.0


class GatedSession(Session):
    """logits = (value of the image, 0, 0); a run waits until the gate is open, and fails if an image is poisoned."""

    def __init__(self) -> None:
        self.description = describe()
        self.gate = threading.Event()
        self.gate.set()
        self.started = threading.Semaphore(0)
        self.runs: list[list[float]] = []
        self.arrays: list[Images] = []

    def _run(self, images: Images) -> Prediction:
        values = images[:, 0, 0, 0]
        self.runs.append(values.tolist())
        self.arrays.append(images)
        self.started.release()
        if not self.gate.wait(PATIENCE):
            raise TimeoutError
        if (values == POISON).any():
            raise RuntimeError("poisoned")
        logits = np.zeros((len(images), 3), np.float32)
        logits[:, 0] = values
        return Prediction(logits=logits, posteriors={"stem": images[:, :1]})

    def describe(self) -> SessionInfo:
        return SessionInfo(
            runtime="gated", version="1", kernel_path="portable", threads=1, device="cpu", file="gated.onnx"
        )

    def close(self) -> None:
        """Nothing to release."""


class Bench:
    """A pool, a session and a batcher, on one event loop."""

    def __init__(self, concurrency: int = 1, **settings: float) -> None:
        self.pool = InferencePool(concurrency)
        self.session = GatedSession()
        self.records: list[BatchRecord] = []
        self.batcher = self.make(self.session, **settings)

    def make(self, session: Session, **settings: float) -> Batcher:
        chosen = {"max_batch": 8, "max_queue": 100, **settings}
        return Batcher(session, self.pool, on_batch=self.records.append, **chosen)  # type: ignore[arg-type]

    def submit(self, *values: float) -> asyncio.Task[BatchedPrediction]:
        return asyncio.ensure_future(self.batcher.submit(images(*values)))

    @contextmanager
    def busy(self) -> Iterator[None]:
        """While the block runs, the model is busy with an image of value 100."""
        self.session.gate.clear()
        self.occupant = self.submit(100)
        try:
            yield
        finally:
            self.session.gate.set()


def images(*values: float) -> Images:
    return np.stack([np.full((3, SIZE, SIZE), value, np.float32) for value in values])


def answer(prediction: BatchedPrediction) -> list[float]:
    logits: list[float] = prediction.prediction.logits[:, 0].tolist()
    assert prediction.prediction.posteriors["stem"][:, 0, 0, 0].tolist() == logits
    return logits


async def started(bench: Bench, runs: int = 1) -> None:
    """Until so many more runs have begun."""
    for _ in range(runs):
        assert await asyncio.to_thread(bench.session.started.acquire, timeout=PATIENCE)


async def settle() -> None:
    """Let everything that can run on the loop run."""
    for _ in range(20):
        await asyncio.sleep(0)


def on_a_loop(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(test(), PATIENCE)

    asyncio.run(bounded())


def test_a_request_that_finds_the_model_idle_runs_at_once_and_uncopied() -> None:
    async def run() -> None:
        bench = Bench()
        for value in (1.0, 2.0):
            given = images(value)
            found = await bench.batcher.submit(given)
            assert answer(found) == [value]
            assert found.batch_size == 1
            assert np.shares_memory(bench.session.arrays[-1], given)
        assert bench.session.runs == [[1.0], [2.0]]

    on_a_loop(run)


def test_what_waits_runs_together_oldest_first_up_to_a_full_batch() -> None:
    async def run() -> None:
        bench = Bench(max_batch=4)
        with bench.busy():
            await started(bench)
            waiting = [bench.submit(1), bench.submit(2, 3), bench.submit(4, 5), bench.submit(6)]
            await settle()
            assert bench.batcher.waiting == 4
        found = await asyncio.gather(bench.occupant, *waiting)
        assert [answer(each) for each in found] == [[100], [1], [2, 3], [4, 5], [6]]
        # The third does not fit behind the first two, and nobody overtakes it.
        assert bench.session.runs == [[100], [1, 2, 3], [4, 5, 6]]
        assert [each.batch_size for each in found] == [1, 3, 3, 3, 3]
        assert [(record.images, record.requests) for record in bench.records] == [(1, 1), (3, 2), (3, 2)]
        assert all(each.queue_seconds > 0 for each in found[1:])

    on_a_loop(run)


def test_a_request_larger_than_a_batch_is_cut_and_does_not_block_small_ones() -> None:
    async def run() -> None:
        bench = Bench(max_batch=4)
        with bench.busy():
            await started(bench)
            large, small = bench.submit(*range(10)), bench.submit(50)
        assert answer(await small) == [50]
        assert not large.done()
        assert answer(await large) == list(range(10))
        assert bench.session.runs == [[100], [0, 1, 2, 3], [50], [4, 5, 6, 7], [8, 9]]
        assert (await large).batch_size == 4

    on_a_loop(run)


def test_pieces_that_run_at_the_same_time_come_back_in_order() -> None:
    async def run() -> None:
        bench = Bench(concurrency=3, max_batch=2)
        found = await asyncio.gather(*(bench.submit(*range(n, n + 7)) for n in range(20)))
        assert [answer(each) for each in found] == [list(range(n, n + 7)) for n in range(20)]

    on_a_loop(run)


def test_a_full_queue_says_when_to_come_back() -> None:
    async def run() -> None:
        bench = Bench(max_queue=3)
        with bench.busy():
            await started(bench)
            waiting = [bench.submit(n) for n in range(3)]
            await settle()
            with pytest.raises(ApiError) as refused:
                await bench.batcher.submit(images(9))
        assert refused.value.status == 503
        assert int(refused.value.headers["Retry-After"]) >= 1
        assert [answer(each) for each in await asyncio.gather(*waiting)] == [[0], [1], [2]]

    on_a_loop(run)


def test_retry_after_follows_the_measured_rate() -> None:
    async def run() -> None:
        bench = Bench()
        assert bench.batcher.retry_after(1000) == 1  # nothing measured yet
        bench.session.gate.clear()
        first = bench.submit(1)
        await started(bench)
        await asyncio.sleep(0.25)
        bench.session.gate.set()
        await first
        # At 0.25 s or more a request, 40 of them take 10 s or more.
        assert 10 <= bench.batcher.retry_after(40) <= 60
        assert bench.batcher.retry_after(10**6) == 60

    on_a_loop(run)


def test_a_cancelled_caller_is_dropped_before_inference() -> None:
    async def run() -> None:
        bench = Bench(max_batch=2)
        with bench.busy():
            await started(bench)
            waiting = [bench.submit(n) for n in range(4)]
            large = bench.submit(*range(10, 20))
            await settle()
            waiting[1].cancel()
            large.cancel()
            await settle()
            assert bench.batcher.waiting == 3
        kept = [await waiting[n] for n in (0, 2, 3)]
        assert [answer(each) for each in kept] == [[0], [2], [3]]
        assert bench.session.runs == [[100], [0, 2], [3]]

    on_a_loop(run)


def test_a_poisoned_image_fails_its_own_request_only() -> None:
    async def run() -> None:
        bench = Bench()
        with bench.busy():
            await started(bench)
            waiting = [bench.submit(1), bench.submit(2, POISON), bench.submit(3), bench.submit(4, 5)]
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert isinstance(outcomes[1], RuntimeError)
        good = [outcome for outcome in outcomes if isinstance(outcome, BatchedPrediction)]
        assert [answer(each) for each in good] == [[1], [3], [4, 5]]
        assert answer(await bench.batcher.submit(images(6))) == [6]

    on_a_loop(run)


def test_wrong_shapes_never_reach_the_queue() -> None:
    async def run() -> None:
        bench = Bench()
        for wrong in (np.zeros((1, 3, 4, 4), np.float32), np.zeros((1, 3, SIZE, SIZE)), images(1)[:0]):
            with pytest.raises(InputError):
                await bench.batcher.submit(wrong)  # type: ignore[arg-type]
        assert bench.session.runs == []

    on_a_loop(run)


def test_max_delay_waits_for_company_but_not_once_the_batch_is_full() -> None:
    async def run() -> None:
        bench = Bench(max_batch=2, max_delay=0.2)
        before = time.perf_counter()
        alone = await bench.batcher.submit(images(1))
        assert time.perf_counter() - before >= 0.2
        assert alone.batch_size == 1
        patient = Bench(max_batch=2, max_delay=PATIENCE * 2)
        pair = await asyncio.gather(patient.submit(1), patient.submit(2))
        assert [each.batch_size for each in pair] == [2, 2]

    on_a_loop(run)


def test_models_take_turns() -> None:
    async def run() -> None:
        bench = Bench(max_batch=1)
        other = bench.make(bench.session, max_batch=1)
        with bench.busy():
            await started(bench)
            many = [bench.submit(n) for n in range(5)]
            await settle()
            one = asyncio.ensure_future(other.submit(images(50)))
            await settle()
        await asyncio.gather(one, *many)
        # Five wait for the busy model, but the other's one has its turn after the first of them.
        assert bench.session.runs.index([50.0]) <= 2

    on_a_loop(run)


@pytest.mark.parametrize("seed", range(5))
def test_whatever_happens_everybody_gets_an_answer_of_his_own(seed: int) -> None:
    rng = np.random.default_rng(seed)

    async def one(bench: Bench, number: int) -> None:
        await asyncio.sleep(rng.uniform(0, 0.05))
        values = (number * 100 + np.arange(rng.integers(1, 12))).tolist()
        fate = rng.choice(["answer", "cancel", "poison"], p=[0.7, 0.2, 0.1])
        if fate == "poison":
            values[int(rng.integers(len(values)))] = POISON
        task = bench.submit(*values)
        if fate == "cancel":
            await asyncio.sleep(rng.uniform(0, 0.005))
            task.cancel()
        (outcome,) = await asyncio.gather(task, return_exceptions=True)
        if isinstance(outcome, BatchedPrediction):
            assert fate != "poison"
            assert answer(outcome) == values
        else:
            expected = {"cancel": asyncio.CancelledError, "poison": RuntimeError}
            assert isinstance(outcome, expected[fate])

    async def run() -> None:
        bench = Bench(concurrency=int(rng.integers(1, 3)), max_batch=int(rng.integers(1, 9)), max_queue=1000)
        await asyncio.gather(*(one(bench, number) for number in range(200)))
        await settle()
        assert bench.batcher.waiting == 0
        assert max(map(len, bench.session.runs)) <= bench.batcher.max_batch

    on_a_loop(run)
