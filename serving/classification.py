"""One request's way through a model, decode, queue, inference, and what metrics, traces and logs learn of it."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from fastapi import Request
from numpy.typing import NDArray

from serving.batching import BatchedPrediction
from serving.models import ServedModel
from serving.services import Services

__all__ = ["Classification"]


class Classification:
    """The stages of one request; ``seconds`` has the time of each that is over."""

    def __init__(self, request: Request, model: ServedModel, services: Services) -> None:
        self._log = request.state.log
        self._model, self._services = model, services
        self.seconds: dict[str, float] = {}
        self._log.update(model=model.name, version=model.version)

    async def decode(self, files: Sequence[bytes]) -> NDArray[np.float32]:
        """Image files -> float32 (n, 3, H, W), as the model's preprocessing says; errors as :meth:`Decoder.decode`."""
        started = time.perf_counter()
        images = await self._services.decoder.decode(files, self._model.description.preprocessing)
        self._over("decode", started, time.perf_counter() - started)
        return images

    async def predict(self, images: NDArray[np.float32]) -> BatchedPrediction:
        """Classify ``images``, float32 (n, 3, H, W); errors as :meth:`Batcher.submit`."""
        self._log.update(images=len(images))
        started = time.perf_counter()
        answer = await self._model.predict(images)
        self._over("queue", started, answer.queue_seconds)
        self._over("inference", started + answer.queue_seconds, answer.inference_seconds, answer.batch_size)
        self._log.update({f"{stage}_ms": round(seconds * 1000, 3) for stage, seconds in self.seconds.items()})
        metrics = self._services.metrics
        metrics.count_images(self._model.name, len(images), self.seconds)
        return answer

    def _over(self, stage: str, started: float, seconds: float, batch_size: int | None = None) -> None:
        self.seconds[stage] = seconds
        if self._services.tracing is not None:
            attributes = {} if batch_size is None else {"cbn.batch_size": batch_size}
            self._services.tracing.stage(stage, started, seconds, attributes)
