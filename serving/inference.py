"""Run models off the event loop, at most a few at a time."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cbn_deploy.runtime import Prediction, Session

__all__ = ["InferencePool", "TimedPrediction"]


@dataclass(frozen=True, kw_only=True)
class TimedPrediction:
    """A prediction, how long it waited for a free place and how long it ran, in seconds."""

    prediction: Prediction
    queue_seconds: float
    inference_seconds: float


class InferencePool:
    """At most ``concurrency`` runs at once; others wait in order. A caller that is cancelled while waiting is dropped.

    The queue has no bound of its own: :class:`~serving.admission.Admission` bounds the requests that can reach it.
    """

    def __init__(self, concurrency: int) -> None:
        self._pool = ThreadPoolExecutor(max_workers=concurrency, thread_name_prefix="inference")

    async def run(self, session: Session, images: NDArray[np.float32]) -> TimedPrediction:
        """Classify ``images``, float32 (B, 3, H, W)."""
        submitted = time.perf_counter()
        return await asyncio.get_running_loop().run_in_executor(self._pool, _run, session, images, submitted)

    def close(self) -> None:
        """Stop the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _run(session: Session, images: NDArray[np.float32], submitted: float) -> TimedPrediction:
    started = time.perf_counter()
    prediction = session.run(images)
    return TimedPrediction(
        prediction=prediction,
        queue_seconds=started - submitted,
        inference_seconds=time.perf_counter() - started,
    )
