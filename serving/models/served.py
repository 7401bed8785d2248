"""A loaded version of a model, ready to answer."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cbn_deploy.runtime import ModelDescription, SessionInfo
from serving.batching import BatchedPrediction, Batcher
from serving.models.statistics import ModelStatistics
from serving.traffic import RecentTraffic

__all__ = ["ServedModel"]


@dataclass(frozen=True, kw_only=True, eq=False)
class ServedModel:
    """A loaded version. It answers for as long as somebody holds it, also after another version has taken its place.

    Attributes:
        name: what clients call it.
        version: a whole number as text; the highest answers unless a client asks for another.
        description: what the model file says about itself.
        info: runtime, kernel path and threads.
        components: layer name -> M, for the layers whose posteriors the file returns; empty without --with-posterior.
        batcher: its queue.
        statistics: what it has done.
        traffic: what it has been asked lately.
    """

    name: str
    version: str
    description: ModelDescription
    info: SessionInfo
    components: Mapping[str, int]
    batcher: Batcher
    statistics: ModelStatistics
    traffic: RecentTraffic

    async def predict(self, images: NDArray[np.float32]) -> BatchedPrediction:
        """Classify ``images``, float32 (n, 3, H, W), together with what else waits; see :meth:`Batcher.submit`."""
        started = time.perf_counter()
        try:
            answer = await self.batcher.submit(images)
        except BaseException:
            self.statistics.count_failure(time.perf_counter() - started)
            raise
        self.statistics.count_answer(answer, time.perf_counter() - started)
        self.traffic.observe(answer.prediction)
        return answer
