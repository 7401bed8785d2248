"""Batches for training, as torch tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from cbn_deploy.data.config import ViewConfig
from cbn_deploy.data.image_set import LongTailedData
from cbn_deploy.data.pixels import PixelNormalizer
from cbn_deploy.data.samplers import Sampling, epoch_order, repetitions
from cbn_deploy.data.sharding import Sharding
from cbn_deploy.data.transforms import Views
from cbn_deploy.errors import DataError

__all__ = ["TrainingBatch", "TrainingLoader", "training_loader"]

# The first word of every generator's seed keeps the kinds of randomness apart; the samplers have 1.
_STRONG, _WEAK = 2, 3
# (epoch, index of the image, how often this epoch has shown it before)
_Key = tuple[int, int, int]


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


class _Portion(NamedTuple):
    """What becomes one :class:`TrainingBatch`."""

    keys: list[_Key]
    weight: float
    ends_step: bool


class _ViewDataset(Dataset["TrainingBatch | DataError"]):
    """Whole batches by (epoch, index, repetition) keys, so that a view depends on nothing but the seed and its key.

    Their views are still pixels, uint8 (B, H, W, 3).
    """

    def __init__(self, data: LongTailedData, config: ViewConfig, seed: int, two_views: bool) -> None:
        self._images = data.train
        self._views = Views(config, data.preprocessing)
        self._seed = seed
        self._two_views = two_views

    def __getitem__(self, portion: _Portion) -> TrainingBatch | DataError:
        # Returned, not raised: torch buries an error raised in a worker under that process's traceback.
        try:
            return self._batch(portion)
        except DataError as error:
            return error

    def _batch(self, portion: _Portion) -> TrainingBatch:
        keys = portion.keys
        strong, weak = [], []
        for key in keys:
            rng = self._generator(_STRONG, key)
            if self._two_views:
                views = self._views.both(self._images, key[1], rng, self._generator(_WEAK, key))
                strong.append(views[0])
                weak.append(views[1])
            else:
                strong.append(self._views.strong(self._images, key[1], rng))
        return TrainingBatch(
            strong=self._tensor(strong),
            weak=self._tensor(weak) if self._two_views else None,
            labels=torch.from_numpy(self._images.labels[[index for _, index, _ in keys]]),
            weight=portion.weight,
            ends_step=portion.ends_step,
        )

    def _generator(self, kind: int, key: _Key) -> np.random.Generator:
        epoch, index, repetition = key
        # Without a repetition the seed has four words, as in runs from before there were any.
        return np.random.default_rng((kind, self._seed, epoch, index, *([repetition] if repetition else [])))

    def _tensor(self, views: list[NDArray[np.uint8]]) -> torch.Tensor:
        return torch.from_numpy(np.stack(views) if views else np.empty((0, *self._views.size, 3), np.uint8))


class _EpochSampler:
    """This process's portions of batches; the order depends on (seed, epoch) alone."""

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

    def __iter__(self) -> Iterator[_Portion]:
        order = epoch_order(self._labels, self._sampling, seed=self._seed, epoch=self.epoch)
        keys = [(self.epoch, *shown) for shown in zip(order.tolist(), repetitions(order).tolist(), strict=True)]
        for step in range(self.steps):
            batch = keys[step * self._batch_size : (step + 1) * self._batch_size]
            shares = self._sharding.shares(len(batch))
            for number, share in enumerate(shares, start=1):
                mine = batch[share.start : share.stop]
                yield _Portion(mine, len(mine) / len(batch), number == len(shares))


def _identity(batch: TrainingBatch | DataError) -> TrainingBatch | DataError:
    return batch


class TrainingLoader:
    """Shuffled, augmented batches of a training set; make it with :func:`training_loader`."""

    def __init__(
        self, dataset: _ViewDataset, sampler: _EpochSampler, workers: int, normalize: PixelNormalizer, pinned: bool
    ) -> None:
        self._sampler = sampler
        self._normalize = normalize
        self._loader: DataLoader[TrainingBatch | DataError] = DataLoader(
            dataset,
            batch_size=None,  # the data set hands over finished batches
            sampler=sampler,
            collate_fn=_identity,  # type: ignore[arg-type]  # one batch, where torch declares a list
            num_workers=workers,
            pin_memory=pinned,
            persistent_workers=workers > 0,
            # DataLoader draws a seed for its workers: not from the global generator, which is the model's.
            generator=torch.Generator(),
            # Forking a process that already runs torch's threads can deadlock, and Python 3.12 warns of it.
            multiprocessing_context="spawn" if workers > 0 else None,
        )

    def __len__(self) -> int:
        """Optimizer steps an epoch."""
        return self._sampler.steps

    def epoch(self, epoch: int) -> Iterator[TrainingBatch]:
        """The batches of epoch ``epoch`` (0, 1, ...), the same whenever and in whatever order epochs are asked for.

        Raises:
            DataError: while iterating, an image that cannot be read.
        """
        if epoch < 0:
            raise ValueError(f"epoch must not be negative, got {epoch}")
        self._sampler.epoch = epoch
        return map(self._ready, self._loader)

    def _ready(self, batch: TrainingBatch | DataError) -> TrainingBatch:
        if isinstance(batch, DataError):
            raise batch
        weak = None if batch.weak is None else self._normalize(batch.weak)
        return replace(batch, strong=self._normalize(batch.strong), weak=weak)


def training_loader(
    data: LongTailedData,
    views: ViewConfig,
    *,
    batch_size: int,
    seed: int,
    workers: int = 0,
    two_views: bool = False,
    sampling: Sampling = "instance_balanced",
    sharding: Sharding | None = None,
    device: torch.device | None = None,
) -> TrainingLoader:
    """Batches for training.

    Every image's augmentation depends only on (seed, epoch, index) and the order only on (seed, epoch): neither the
    number of workers nor a resumed run changes a pixel. An image that a sampling shows again in the same epoch is
    distorted anew. A trailing batch of one image is dropped, because batch statistics need two. The ranks' shares of a
    batch are together the batch that one process would have.

    Args:
        data: its ``train`` set is used.
        views: the augmentation.
        batch_size: images a batch, over all ranks and portions, at least 2.
        seed: 0 ... 2**32 - 1.
        workers: processes that prepare batches; 0 prepares them in this one.
        two_views: also make the weak view.
        sampling: which images an epoch shows; its length is that of the training set under every sampling.
        sharding: this process's part of every batch; all of it without.
        device: where the views are wanted; pixels cross to a GPU from pinned memory and are normalised there.

    Raises:
        DataError: the training set has fewer than two images.
    """
    if batch_size < 2:
        raise ValueError(f"batch_size must be at least 2, got {batch_size}")
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must be in 0 ... 2**32 - 1, got {seed}")
    if workers < 0:
        raise ValueError(f"workers must not be negative, got {workers}")
    if len(data.train) < 2:
        raise DataError(f"{data.name} has {len(data.train)} training image(s); at least 2 are needed.")
    dataset = _ViewDataset(data, views, seed, two_views)
    sampler = _EpochSampler(data.train.labels, batch_size, seed, sampling, sharding or Sharding())
    device = device or torch.device("cpu")
    normalizer = PixelNormalizer(data.preprocessing, device)
    return TrainingLoader(dataset, sampler, workers, normalizer, pinned=device.type == "cuda")
