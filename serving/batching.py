"""Dynamic batching: requests that wait for the same model run together, and nobody waits for company.

A request that finds a free slot runs at once. While all slots are taken requests wait in order, and the next batch
takes the oldest ones together, up to ``max_batch`` images: batches grow with the load by themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cbn_deploy.runtime import Prediction, Session
from serving.errors import ApiError
from serving.inference import InferencePool

__all__ = ["BatchRecord", "BatchedPrediction", "Batcher"]

Images = NDArray[np.float32]

# Weight of the newest batch in the running mean of the service time.
_NEWEST = 0.2
_MAX_RETRY_SECONDS = 60


@dataclass(frozen=True, kw_only=True)
class BatchedPrediction:
    """The answer to one request.

    Attributes:
        prediction: of the request's own images, in their order.
        queue_seconds: from submission to the start of its first batch.
        inference_seconds: in the runtime, together with the others of its batches.
        batch_size: images in the largest batch that it was part of.
    """

    prediction: Prediction
    queue_seconds: float
    inference_seconds: float
    batch_size: int


@dataclass(frozen=True, kw_only=True)
class BatchRecord:
    """One batch that ran, for whoever counts: images, the requests they came from, and seconds in the runtime."""

    images: int
    requests: int
    inference_seconds: float


@dataclass(eq=False)
class _Request:
    """A request: ``taken`` of its images have run or are running, ``parts`` are answers by their first image."""

    images: Images
    future: asyncio.Future[BatchedPrediction]
    submitted: float
    taken: int = 0
    parts: dict[int, Prediction] = field(default_factory=dict)
    queue_seconds: float = 0.0
    inference_seconds: float = 0.0
    batch_size: int = 0

    @property
    def left(self) -> int:
        return len(self.images) - self.taken


@dataclass(frozen=True)
class _Piece:
    """The images of one request in one batch: all of them, or those from ``start`` on."""

    request: _Request
    start: int
    images: Images


class Batcher:
    """The queue of one loaded model. To be used from one event loop.

    Args:
        session: the model.
        pool: where it runs.
        max_batch: most images in one run; a request with more is cut, and its rest goes to the end of the queue.
        max_delay: seconds that a batch which is not full may wait for more; 0: none.
        max_queue: most requests waiting.
        on_batch: called after every batch.
    """

    def __init__(
        self,
        session: Session,
        pool: InferencePool,
        *,
        max_batch: int,
        max_delay: float = 0.0,
        max_queue: int,
        on_batch: Callable[[BatchRecord], None],
    ) -> None:
        self._session, self._pool = session, pool
        self.max_batch, self._max_delay, self._max_queue = max_batch, max_delay, max_queue
        self._on_batch = on_batch
        self._queue: deque[_Request] = deque()
        self._images_waiting = 0
        self._full = asyncio.Event()
        self._running = 0
        self._runners: set[asyncio.Task[None]] = set()  # the loop itself holds its tasks by weak references only
        self._seconds_per_request = 0.0

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._queue)

    def retry_after(self, requests: int) -> int:
        """Whole seconds, at least 1, that ``requests`` requests take at the measured rate."""
        seconds = requests * self._seconds_per_request / self._pool.concurrency
        return min(max(1, math.ceil(seconds)), _MAX_RETRY_SECONDS)

    async def submit(self, images: Images) -> BatchedPrediction:
        """Classify ``images``, float32 (n, 3, H, W), n >= 1. If the caller is cancelled they are not run any more.

        Args:
            images: preprocessed as the model's description says; not to be changed before the answer.

        Raises:
            InputError: wrong shape or dtype.
            ApiError: 503 with Retry-After, the queue is full.
        """
        self._session.check(images)
        if len(self._queue) >= self._max_queue:
            raise ApiError(
                503,
                f"{len(self._queue)} requests wait for this model already; try again.",
                {"Retry-After": str(self.retry_after(len(self._queue)))},
                reason="queue_full",
            )
        request = _Request(images, asyncio.get_running_loop().create_future(), time.perf_counter())
        self._enqueue(request)
        try:
            return await request.future
        finally:
            self._forget(request)

    def _enqueue(self, request: _Request) -> None:
        self._queue.append(request)
        self._images_waiting += request.left
        if self._images_waiting >= self.max_batch:
            self._full.set()
        if self._running < self._pool.concurrency:
            self._running += 1
            runner = asyncio.get_running_loop().create_task(self._run_until_empty())
            self._runners.add(runner)
            runner.add_done_callback(self._runners.discard)

    def _forget(self, request: _Request) -> None:
        """After an answer or a cancellation nothing of the request is run any more."""
        if request.left and request in self._queue:
            self._queue.remove(request)
            self._images_waiting -= request.left

    async def _run_until_empty(self) -> None:
        try:
            while self._queue:
                if self._max_delay > 0:
                    await self._wait_for_company()
                async with self._pool.slot():
                    batch = self._take()
                    if batch:
                        await self._run(batch)
        finally:  # in one step with the last look at the queue: whoever comes next starts another
            self._running -= 1

    async def _wait_for_company(self) -> None:
        left = self._queue[0].submitted + self._max_delay - time.perf_counter()
        if left > 0 and self._images_waiting < self.max_batch:
            self._full.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._full.wait(), left)

    def _take(self) -> list[_Piece]:
        """The oldest requests that fit into one batch together; of one that is larger than a batch, a batch."""
        batch: list[_Piece] = []
        room = self.max_batch
        while self._queue and room > 0:
            request = self._queue[0]
            if request.future.done():  # its caller has yet to be woken
                self._forget(request)
                continue
            if request.left > room and batch:
                break
            self._queue.popleft()
            piece = _Piece(request, request.taken, request.images[request.taken : request.taken + room])
            batch.append(piece)
            request.taken += len(piece.images)
            self._images_waiting -= len(piece.images)
            room -= len(piece.images)
            if request.left:
                self._queue.append(request)
        return batch

    async def _run(self, batch: list[_Piece]) -> None:
        started = time.perf_counter()
        arrays = [piece.images for piece in batch]
        try:
            outcomes = await self._pool.run(functools.partial(_predict, self._session, arrays))
        except Exception as error:  # noqa: BLE001 - whatever it is, nobody must wait for ever
            outcomes = [error] * len(batch)
        seconds = time.perf_counter() - started
        images = sum(map(len, arrays))
        self._measure(seconds, len(batch))
        for piece, outcome in zip(batch, outcomes, strict=True):
            request = piece.request
            if piece.start == 0:
                request.queue_seconds = started - request.submitted
            request.inference_seconds += seconds
            request.batch_size = max(request.batch_size, images)
            _deliver(piece, outcome)
        self._on_batch(BatchRecord(images=images, requests=len(batch), inference_seconds=seconds))

    def _measure(self, seconds: float, requests: int) -> None:
        newest, known = seconds / requests, self._seconds_per_request
        self._seconds_per_request = newest if known == 0 else known + _NEWEST * (newest - known)


def _predict(session: Session, arrays: Sequence[Images]) -> list[Prediction | Exception]:
    """The outcome for each of ``arrays``, run together; if that fails, in halves, so that only the culprit fails."""
    try:
        # One request alone is not copied.
        prediction = session.run(arrays[0] if len(arrays) == 1 else np.concatenate(arrays))
    except Exception as error:  # noqa: BLE001 - runtimes raise what they like; it is the answer to that request
        if len(arrays) == 1:
            return [error]
        middle = len(arrays) // 2
        return _predict(session, arrays[:middle]) + _predict(session, arrays[middle:])
    ends = np.cumsum([len(array) for array in arrays])
    return [_rows(prediction, int(end) - len(array), int(end)) for array, end in zip(arrays, ends, strict=True)]


def _rows(prediction: Prediction, start: int, end: int) -> Prediction:
    return Prediction(
        logits=prediction.logits[start:end],
        posteriors={layer: posterior[start:end] for layer, posterior in prediction.posteriors.items()},
    )


def _deliver(piece: _Piece, outcome: Prediction | Exception) -> None:
    request = piece.request
    if request.future.done():  # given up meanwhile
        return
    if isinstance(outcome, Exception):
        request.future.set_exception(outcome)
        return
    request.parts[piece.start] = outcome
    if sum(len(part.logits) for part in request.parts.values()) == len(request.images):
        request.future.set_result(
            BatchedPrediction(
                prediction=_join([request.parts[start] for start in sorted(request.parts)]),
                queue_seconds=request.queue_seconds,
                inference_seconds=request.inference_seconds,
                batch_size=request.batch_size,
            )
        )


def _join(parts: Sequence[Prediction]) -> Prediction:
    if len(parts) == 1:
        return parts[0]
    return Prediction(
        logits=np.concatenate([part.logits for part in parts]),
        posteriors={layer: np.concatenate([part.posteriors[layer] for part in parts]) for layer in parts[0].posteriors},
    )
