"""Batches for training and evaluation, as torch tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from cbn_deploy.data.config import ViewConfig
from cbn_deploy.data.image_set import ImageSet, LongTailedData
from cbn_deploy.data.samplers import Sampling, epoch_order, repetitions
from cbn_deploy.data.transforms import Views
from cbn_deploy.errors import DataError
from cbn_deploy.runtime.description import Preprocessing
from cbn_deploy.runtime.preprocessing import normalize, resize

__all__ = ["TrainingBatch", "TrainingLoader", "evaluation_batches", "training_loader"]

# The first word of every generator's seed keeps the kinds of randomness apart; the samplers have 1.
_STRONG, _WEAK = 2, 3
# (epoch, index of the image, how often this epoch has shown it before)
_Key = tuple[int, int, int]


@dataclass(frozen=True)
class TrainingBatch:
    """B training images.

    Attributes:
        strong: float32 (B, 3, H, W), the strong view.
        weak: float32 (B, 3, H, W), the weak view of the same images, or ``None``.
        labels: int64 (B,).
    """

    strong: torch.Tensor
    weak: torch.Tensor | None
    labels: torch.Tensor


class _ViewDataset(Dataset["TrainingBatch | DataError"]):
    """Whole batches by (epoch, index, repetition) keys, so that a view depends on nothing but the seed and its key."""

    def __init__(self, data: LongTailedData, config: ViewConfig, seed: int, two_views: bool) -> None:
        self._images = data.train
        self._preprocessing = data.preprocessing
        self._views = Views(config, data.preprocessing)
        self._seed = seed
        self._two_views = two_views

    def __getitem__(self, key: _Key) -> TrainingBatch | DataError:
        return self.__getitems__([key])

    def __getitems__(self, keys: Sequence[_Key]) -> TrainingBatch | DataError:
        # Returned, not raised: torch buries an error raised in a worker under that process's traceback.
        try:
            return self._batch(keys)
        except DataError as error:
            return error

    def _batch(self, keys: Sequence[_Key]) -> TrainingBatch:
        strong = [self._views.strong(self._images, key[1], self._generator(_STRONG, key)) for key in keys]
        weak = None
        if self._two_views:
            weak = [self._views.weak(self._images, key[1], self._generator(_WEAK, key)) for key in keys]
        return TrainingBatch(
            strong=self._tensor(strong),
            weak=None if weak is None else self._tensor(weak),
            labels=torch.from_numpy(self._images.labels[[index for _, index, _ in keys]]),
        )

    def _generator(self, kind: int, key: _Key) -> np.random.Generator:
        epoch, index, repetition = key
        # Without a repetition the seed has four words, as in runs from before there were any.
        return np.random.default_rng((kind, self._seed, epoch, index, *([repetition] if repetition else [])))

    def _tensor(self, views: list[NDArray[np.uint8]]) -> torch.Tensor:
        return torch.from_numpy(normalize(np.stack(views), self._preprocessing))


class _EpochSampler:
    """Batches of keys; the order depends on (seed, epoch) alone."""

    def __init__(self, labels: NDArray[np.int64], batch_size: int, seed: int, sampling: Sampling) -> None:
        self._labels = labels
        self._batch_size = batch_size
        self._seed = seed
        self._sampling = sampling
        self.epoch = 0

    def __len__(self) -> int:
        full, rest = divmod(len(self._labels), self._batch_size)
        return full + (rest > 1)

    def __iter__(self) -> Iterator[list[_Key]]:
        epoch = self.epoch
        order = epoch_order(self._labels, self._sampling, seed=self._seed, epoch=epoch)
        shown, repeated = order.tolist(), repetitions(order).tolist()
        for batch in range(len(self)):
            start = batch * self._batch_size
            end = start + self._batch_size
            yield [(epoch, i, r) for i, r in zip(shown[start:end], repeated[start:end], strict=True)]


def _identity(batch: TrainingBatch | DataError) -> TrainingBatch | DataError:
    return batch


def _checked(batch: TrainingBatch | DataError) -> TrainingBatch:
    if isinstance(batch, DataError):
        raise batch
    return batch


class TrainingLoader:
    """Shuffled, augmented batches of a training set; make it with :func:`training_loader`."""

    def __init__(self, dataset: _ViewDataset, sampler: _EpochSampler, workers: int) -> None:
        self._sampler = sampler
        self._loader: DataLoader[TrainingBatch | DataError] = DataLoader(
            dataset,
            batch_sampler=sampler,
            collate_fn=_identity,  # type: ignore[arg-type]  # __getitems__ hands over a finished batch
            num_workers=workers,
            persistent_workers=workers > 0,
            # DataLoader draws a seed for its workers: not from the global generator, which is the model's.
            generator=torch.Generator(),
            # Forking a process that already runs torch's threads can deadlock, and Python 3.12 warns of it.
            multiprocessing_context="spawn" if workers > 0 else None,
        )

    def __len__(self) -> int:
        """Batches an epoch."""
        return len(self._sampler)

    def epoch(self, epoch: int) -> Iterator[TrainingBatch]:
        """The batches of epoch ``epoch`` (0, 1, ...), the same whenever and in whatever order epochs are asked for.

        Raises:
            DataError: while iterating, an image that cannot be read.
        """
        if epoch < 0:
            raise ValueError(f"epoch must not be negative, got {epoch}")
        self._sampler.epoch = epoch
        return map(_checked, self._loader)


def training_loader(
    data: LongTailedData,
    views: ViewConfig,
    *,
    batch_size: int,
    seed: int,
    workers: int = 0,
    two_views: bool = False,
    sampling: Sampling = "instance_balanced",
) -> TrainingLoader:
    """Batches for training.

    Every image's augmentation depends only on (seed, epoch, index) and the order only on (seed, epoch): neither the
    number of workers nor a resumed run changes a pixel. An image that a sampling shows again in the same epoch is
    distorted anew. A trailing batch of one image is dropped, because batch statistics need two.

    Args:
        data: its ``train`` set is used.
        views: the augmentation.
        batch_size: images a batch, at least 2.
        seed: 0 ... 2**32 - 1.
        workers: processes that prepare batches; 0 prepares them in this one.
        two_views: also make the weak view.
        sampling: which images an epoch shows; its length is that of the training set under every sampling.

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
    return TrainingLoader(dataset, _EpochSampler(data.train.labels, batch_size, seed, sampling), workers)


def evaluation_batches(
    images: ImageSet, preprocessing: Preprocessing, batch_size: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The images in order, exactly as the server would prepare them: float32 (B, 3, H, W) and labels int64 (B,)."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    fits = images.fits(preprocessing)
    for start in range(0, len(images), batch_size):
        indices = range(start, min(start + batch_size, len(images)))
        pixels = [images.pixels(i) if fits else resize(images.image(i), preprocessing) for i in indices]
        labels = torch.from_numpy(images.labels[start : start + batch_size].copy())
        yield torch.from_numpy(normalize(np.stack(pixels), preprocessing)), labels
