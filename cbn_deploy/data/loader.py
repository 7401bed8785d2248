"""Batches for training, as torch tensors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from cbn_deploy.data.batches import EpochSampler, Portion, TrainingBatch, TrainingLoader
from cbn_deploy.data.config import ViewConfig
from cbn_deploy.data.device_loader import DeviceLoader
from cbn_deploy.data.draws import STRONG, WEAK, view_generator
from cbn_deploy.data.image_set import LongTailedData
from cbn_deploy.data.pixels import PixelNormalizer
from cbn_deploy.data.samplers import Sampling
from cbn_deploy.data.sharding import Sharding
from cbn_deploy.data.transforms import Views
from cbn_deploy.errors import CbnError, DataError

__all__ = ["WorkerLoader", "training_loader"]


class _ViewDataset(Dataset["TrainingBatch | CbnError"]):
    """Whole batches by their portions, so that a view depends on nothing but (seed, epoch, index, repetition).

    Their views are still pixels, uint8 (B, H, W, 3).
    """

    def __init__(self, data: LongTailedData, config: ViewConfig, seed: int, two_views: bool) -> None:
        self._images = data.train
        self._views = Views(config, data.preprocessing)
        self._seed = seed
        self._two_views = two_views

    def __getitem__(self, portion: Portion) -> TrainingBatch | CbnError:
        # Returned, not raised: torch buries an error raised in a worker under that process's traceback.
        try:
            return self._batch(portion)
        except CbnError as error:
            return error

    def _batch(self, portion: Portion) -> TrainingBatch:
        strong, weak = [], []
        for index, repetition in zip(portion.indices.tolist(), portion.repetitions.tolist(), strict=True):
            rng = view_generator(STRONG, self._seed, portion.epoch, index, repetition)
            if self._two_views:
                other = view_generator(WEAK, self._seed, portion.epoch, index, repetition)
                views = self._views.both(self._images, index, rng, other)
                strong.append(views[0])
                weak.append(views[1])
            else:
                strong.append(self._views.strong(self._images, index, rng))
        return TrainingBatch(
            strong=self._tensor(strong),
            weak=self._tensor(weak) if self._two_views else None,
            labels=torch.from_numpy(self._images.labels[portion.indices]),
            weight=portion.weight,
            ends_step=portion.ends_step,
        )

    def _tensor(self, views: list[NDArray[np.uint8]]) -> torch.Tensor:
        return torch.from_numpy(np.stack(views) if views else np.empty((0, *self._views.size, 3), np.uint8))


def _identity(batch: TrainingBatch | CbnError) -> TrainingBatch | CbnError:
    return batch


class WorkerLoader(TrainingLoader):
    """Views made image by image, in worker processes or in this one."""

    def __init__(
        self, dataset: _ViewDataset, sampler: EpochSampler, workers: int, normalize: PixelNormalizer, pinned: bool
    ) -> None:
        self._sampler = sampler
        self._normalize = normalize
        self._loader: DataLoader[TrainingBatch | CbnError] = DataLoader(
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
        """See :meth:`TrainingLoader.epoch`."""
        if epoch < 0:
            raise ValueError(f"epoch must not be negative, got {epoch}")
        self._sampler.epoch = epoch
        return map(self._ready, self._loader)

    def _ready(self, batch: TrainingBatch | CbnError) -> TrainingBatch:
        if isinstance(batch, CbnError):
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
    device_views: bool = False,
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
        workers: processes that prepare batches; 0 prepares them in this one. Views on the device need none; then it is
            the number of threads that read the image files, once.
        two_views: also make the weak view.
        sampling: which images an epoch shows; its length is that of the training set under every sampling.
        sharding: this process's part of every batch; all of it without.
        device: where the views are wanted; pixels cross to a GPU from pinned memory and are normalised there.
        device_views: keep the images on the device and make the views there, the same to the bit
            (:class:`DeviceLoader`); for images that fit into memory at the model's size, with the padded crop.

    Raises:
        DataError: the training set has fewer than two images, or views of it cannot be made on the device.
    """
    if batch_size < 2:
        raise ValueError(f"batch_size must be at least 2, got {batch_size}")
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must be in 0 ... 2**32 - 1, got {seed}")
    if workers < 0:
        raise ValueError(f"workers must not be negative, got {workers}")
    if len(data.train) < 2:
        raise DataError(f"{data.name} has {len(data.train)} training image(s); at least 2 are needed.")
    sampler = EpochSampler(data.train.labels, batch_size, seed, sampling, sharding or Sharding())
    device = device or torch.device("cpu")
    if device_views:
        return DeviceLoader(data, views, sampler, seed=seed, two_views=two_views, device=device, threads=workers)
    dataset = _ViewDataset(data, views, seed, two_views)
    normalizer = PixelNormalizer(data.preprocessing, device)
    return WorkerLoader(dataset, sampler, workers, normalizer, pinned=device.type == "cuda")
