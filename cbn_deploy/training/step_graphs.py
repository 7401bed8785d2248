"""Training steps recorded as CUDA graphs: a step of a small network is one launch instead of thousands.

The first steps of every batch size run as they are and warm everything up; the next one is recorded, which computes
nothing, and from then on the recording is replayed. So a run takes the same steps as without recordings. What a
recording needs is that all its tensors stay where they are: batches are copied into its own, and the buffers that the
layers bind anew in every pass (:mod:`cbn_deploy.norm.layers`) are written back to where they were, at the end of every
step.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from cbn_deploy.data import TrainingBatch
from cbn_deploy.norm import buffers_in_place
from cbn_deploy.training.averages import StepSums

__all__ = ["StepGraphs"]

# Steps of each kind that run unrecorded: the first makes the optimizer's momentum, the second already uses it.
WARM_UP_STEPS = 2

Step = Callable[[TrainingBatch], StepSums]


class StepGraphs:
    """Computes steps, recorded after a warm-up.

    Args:
        model: the network, on a CUDA device; a step may bind its buffers anew.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._pool = torch.cuda.graph_pool_handle()
        # Its own: libraries keep a workspace for every stream, which recordings that run at once must not share.
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self._seen: dict[Hashable, int] = {}
        self._recordings: dict[Hashable, _Recording] = {}

    def run(self, batch: TrainingBatch, step: Step, kind: Hashable) -> StepSums:
        """``step(batch)``; its result is overwritten by the next call.

        Args:
            batch: on the device.
            step: what to compute; must not wait for the device.
            kind: of two steps with the same kind and batch size the second may be a replay of the first one's
                recording, so everything but the batch that a step depends on has to lie in tensors that stay, or in
                here.
        """
        key = (len(batch.labels), batch.weak is None, kind)
        if key not in self._recordings:
            self._seen[key] = self._seen.get(key, 0) + 1
            if self._seen[key] <= WARM_UP_STEPS:
                with buffers_in_place(self._model):
                    return step(batch)
            self._recordings[key] = _Recording(self._model, step, batch, self._pool, self._stream)
        return self._recordings[key].replay(batch)


class _Recording:
    """One step, with tensors of its own for the batch."""

    def __init__(
        self, model: nn.Module, step: Step, batch: TrainingBatch, pool: Any, stream: torch.cuda.Stream
    ) -> None:
        weak = None if batch.weak is None else batch.weak.clone()
        self._batch = replace(batch, strong=batch.strong.clone(), weak=weak, labels=batch.labels.clone())
        # Kept, because the recording reads tensors that only the step may know, such as a class prior.
        self._step = step
        self._graph = torch.cuda.CUDAGraph()
        # What is left of earlier steps' autograd graphs would tie the recording to their streams.
        gc.collect()
        # Other threads of this process, such as the one that pins batches, may go on allocating.
        recording = torch.cuda.graph(self._graph, pool=pool, stream=stream, capture_error_mode="thread_local")
        with recording, buffers_in_place(model):
            self._sums = step(self._batch)

    def replay(self, batch: TrainingBatch) -> StepSums:
        self._batch.strong.copy_(batch.strong, non_blocking=True)
        self._batch.labels.copy_(batch.labels, non_blocking=True)
        if self._batch.weak is not None and batch.weak is not None:
            self._batch.weak.copy_(batch.weak, non_blocking=True)
        self._graph.replay()
        return self._sums
