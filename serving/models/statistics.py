"""What a model has done since it was loaded, as the Open Inference Protocol's statistics want it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

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

    def __add__(self, other: Durations) -> Durations:
        return Durations(self.count + other.count, self.ns + other.ns)


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

    def __add__(self, other: ModelStatistics) -> ModelStatistics:
        """What both have done."""
        sizes = self.batches.keys() | other.batches.keys()
        return ModelStatistics(
            inference_count=self.inference_count + other.inference_count,
            execution_count=self.execution_count + other.execution_count,
            last_inference_ms=max(self.last_inference_ms, other.last_inference_ms),
            success=self.success + other.success,
            fail=self.fail + other.fail,
            queue=self.queue + other.queue,
            compute_infer=self.compute_infer + other.compute_infer,
            batches={
                size: self.batches.get(size, Durations()) + other.batches.get(size, Durations()) for size in sizes
            },
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for another process."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelStatistics:
        """The reverse of :meth:`to_dict`, also after a journey as JSON, whose keys are text."""
        durations = {name: Durations(**values[name]) for name in ("success", "fail", "queue", "compute_infer")}
        batches = {int(size): Durations(**found) for size, found in values["batches"].items()}
        return cls(**{**values, **durations, "batches": batches})

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
