"""What a model has done since it was loaded, as the Open Inference Protocol's statistics want it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from serving.batching import BatchedPrediction, BatchRecord

__all__ = ["Durations", "ModelStatistics"]


@dataclass
class Durations:
    """How often something happened, and how long that took in all."""

    count: int = 0
    ns: int = 0

    def add(self, seconds: float) -> None:
        """Once more, for ``seconds``."""
        self.count += 1
        self.ns += round(seconds * 1e9)


@dataclass
class ModelStatistics:
    """Counters of one version; changed on the event loop only.

    Attributes:
        inference_count: images classified, in answered requests.
        execution_count: batches run.
        last_inference_ms: end of the last batch, milliseconds since 1970; 0: none yet.
        success: requests answered, and their time from submission to answer.
        fail: requests that failed or were given up, likewise.
        queue: requests answered, and their time in the queue.
        compute_infer: requests answered, and the time of the batches that they were part of.
        batches: images of a batch -> batches of that size, and their time in the runtime.
    """

    inference_count: int = 0
    execution_count: int = 0
    last_inference_ms: int = 0
    success: Durations = field(default_factory=Durations)
    fail: Durations = field(default_factory=Durations)
    queue: Durations = field(default_factory=Durations)
    compute_infer: Durations = field(default_factory=Durations)
    batches: dict[int, Durations] = field(default_factory=dict)

    def count_batch(self, record: BatchRecord) -> None:
        """A batch has run."""
        self.execution_count += 1
        self.last_inference_ms = int(time.time() * 1000)
        self.batches.setdefault(record.images, Durations()).add(record.inference_seconds)

    def count_answer(self, answer: BatchedPrediction, seconds: float) -> None:
        """A request was answered ``seconds`` after its submission."""
        self.inference_count += len(answer.prediction.logits)
        self.success.add(seconds)
        self.queue.add(answer.queue_seconds)
        self.compute_infer.add(answer.inference_seconds)

    def count_failure(self, seconds: float) -> None:
        """A request failed or was given up ``seconds`` after its submission."""
        self.fail.add(seconds)
