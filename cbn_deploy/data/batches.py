"""What a training step is given, and which images it is made of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from cbn_deploy.data.samplers import Sampling, epoch_order, repetitions
from cbn_deploy.data.sharding import Sharding

__all__ = ["EpochSampler", "Portion", "TrainingBatch", "TrainingLoader"]


@dataclass(frozen=True)
class TrainingBatch:
    """B training images: those of one optimizer step, or this process's part of them.

    Attributes:
        strong: float32 (B, 3, H, W), the strong view.
        weak: float32 (B, 3, H, W), the weak view of the same images, or ``None``.
        labels: int64 (B,).
        weight: B by the images of the whole step; over its portions and ranks the weights sum to 1.
        ends_step: whether no portion of the same step follows.
    """

    strong: torch.Tensor
    weak: torch.Tensor | None
    labels: torch.Tensor
    weight: float = 1.0
    ends_step: bool = True

    def to(self, device: torch.device) -> TrainingBatch:
        """The same on ``device``; from pinned memory the copy runs beside what the device computes."""
        return self._changed(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> TrainingBatch:
        """The same in memory that a GPU can read by itself; the DataLoader calls it."""
        return self._changed(torch.Tensor.pin_memory)

    def _changed(self, change: Callable[[torch.Tensor], torch.Tensor]) -> TrainingBatch:
        weak = None if self.weak is None else change(self.weak)
        return replace(self, strong=change(self.strong), weak=weak, labels=change(self.labels))


class TrainingLoader(ABC):
    """Shuffled, augmented batches of a training set; make one with :func:`cbn_deploy.data.training_loader`."""

    @abstractmethod
    def __len__(self) -> int:
        """Optimizer steps an epoch."""

    @abstractmethod
    def epoch(self, epoch: int) -> Iterator[TrainingBatch]:
        """The batches of epoch ``epoch`` (0, 1, ...), the same whenever and in whatever order epochs are asked for.

        Raises:
            ValueError: ``epoch`` is negative.
            DataError: while iterating, an image that cannot be read.
        """


class Portion(NamedTuple):
    """What becomes one :class:`TrainingBatch`.

    Attributes:
        epoch: 0-based.
        indices: int64 (B,) of the images.
        repetitions: int64 (B,), how often this epoch has shown each before.
        weight: of the batch.
        ends_step: of the batch.
    """

    epoch: int
    indices: NDArray[np.int64]
    repetitions: NDArray[np.int64]
    weight: float
    ends_step: bool


class EpochSampler:
    """This process's portions of batches; the order depends on (seed, epoch) alone.

    Args:
        labels: int64 (n,) of the training images.
        batch_size: images a batch, over all ranks and portions.
        seed: 0 ... 2**32 - 1.
        sampling: which images an epoch shows.
        sharding: this process's part of every batch.
    """

    def __init__(
        self, labels: NDArray[np.int64], batch_size: int, seed: int, sampling: Sampling, sharding: Sharding
    ) -> None:
        self._labels = labels
        self._batch_size = batch_size
        self._seed = seed
        self._sampling = sampling
        self._sharding = sharding
        self.epoch = 0

    @property
    def steps(self) -> int:
        """Optimizer steps an epoch."""
        full, rest = divmod(len(self._labels), self._batch_size)
        return full + (rest > 1)

    def __iter__(self) -> Iterator[Portion]:
        """The portions of :attr:`epoch`."""
        return self.portions(self.epoch)

    def portions(self, epoch: int) -> Iterator[Portion]:
        """The portions of an epoch."""
        order = epoch_order(self._labels, self._sampling, seed=self._seed, epoch=epoch)
        before = repetitions(order)
        for start in range(0, self.steps * self._batch_size, self._batch_size):
            images = min(self._batch_size, len(order) - start)
            shares = self._sharding.shares(images)
            for number, share in enumerate(shares, start=1):
                mine = slice(start + share.start, start + share.stop)
                yield Portion(epoch, order[mine], before[mine], len(share) / images, number == len(shares))
