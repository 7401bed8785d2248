"""Training batches whose views are made on the training device, the same to the bit as those made image by image."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cbn_deploy.data.batches import EpochSampler, Portion, TrainingBatch, TrainingLoader
from cbn_deploy.data.config import ViewConfig
from cbn_deploy.data.device_views import DeviceViews, sent
from cbn_deploy.data.draws import STRONG, WEAK, uniforms
from cbn_deploy.data.image_set import FileImageSet, LongTailedData
from cbn_deploy.data.pixels import PixelNormalizer
from cbn_deploy.errors import DataError

__all__ = ["DeviceLoader"]

# Views are made for many batches at once: the host asks a GPU for some 300 operations, however many images there are.
_BATCHES_AT_ONCE = 32
# As long as they have no more pixels than 4096 images of 32 x 32: each takes about 100 bytes while views are made.
_PIXELS_AT_ONCE = 2**22


class _Pixels(NamedTuple):
    """Views that were made together, on the device, before they are normalised.

    Attributes:
        order: int64 (n,), the images that are shown.
        strong: uint8 (n, H, W, 3), their strong views.
        weak: uint8 (n, H, W, 3), their weak views, or ``None``.
    """

    order: Tensor
    strong: Tensor
    weak: Tensor | None


class DeviceLoader(TrainingLoader):
    """Keeps the training images on the device and makes the views there; see :func:`cbn_deploy.data.training_loader`.

    Args:
        data: its ``train`` set is used: images in memory of the model's size, or files that all fit into their cache.
        config: the augmentation, with the padded crop.
        sampler: which images each batch has.
        seed: 0 ... 2**32 - 1.
        two_views: also make the weak view.
        device: where to keep the images and make the views.
        threads: that read image files, once; at least one does.

    Raises:
        DataError: the views cannot be made on the device, or an image cannot be read.

    Attributes:
        labels: int64 (n,) of the training images, on the device.
        normalize: uint8 views (..., H, W, 3) -> float32 (..., 3, H, W).
    """

    def __init__(
        self,
        data: LongTailedData,
        config: ViewConfig,
        sampler: EpochSampler,
        *,
        seed: int,
        two_views: bool,
        device: torch.device,
        threads: int = 0,
    ) -> None:
        _check_suitable(data, config)
        self._sampler = sampler
        self._seed = seed
        self._two_views = two_views
        self._views = DeviceViews(config, data.preprocessing, device)
        self._images = torch.from_numpy(_all_pixels(data, threads)).to(device)
        self.labels = torch.from_numpy(data.train.labels.copy()).to(device)
        self.normalize = PixelNormalizer(data.preprocessing, device)

    def __len__(self) -> int:
        """Optimizer steps an epoch."""
        return self._sampler.steps

    def epoch(self, epoch: int) -> Iterator[TrainingBatch]:
        """See :meth:`TrainingLoader.epoch`; the batches are on the device."""
        if epoch < 0:
            raise ValueError(f"epoch must not be negative, got {epoch}")
        return self._batches(epoch)

    def _batches(self, epoch: int) -> Iterator[TrainingBatch]:
        for chunk in self._chunks(epoch):
            order, strong, weak = self._pixels(chunk)
            sizes = [len(portion.indices) for portion in chunk]
            labels = torch.split(self.labels[order], sizes)
            strong_views = torch.split(self.normalize(strong), sizes)
            weak_views = [None] * len(sizes) if weak is None else torch.split(self.normalize(weak), sizes)
            for number, portion in enumerate(chunk):
                yield TrainingBatch(
                    strong=strong_views[number],
                    weak=weak_views[number],
                    labels=labels[number],
                    weight=portion.weight,
                    ends_step=portion.ends_step,
                )

    def _chunks(self, epoch: int) -> Iterator[list[Portion]]:
        """Portions whose views are made together: of a few batches, and not too many pixels."""
        pixels_each = self._images[0].numel() // 3
        chunk: list[Portion] = []
        pixels = steps = 0
        for portion in self._sampler.portions(epoch):
            more = len(portion.indices) * pixels_each
            if chunk and (pixels + more > _PIXELS_AT_ONCE or steps == _BATCHES_AT_ONCE):
                yield chunk
                chunk, pixels, steps = [], 0, 0
            chunk.append(portion)
            pixels += more
            steps += portion.ends_step
        if chunk:
            yield chunk

    def _pixels(self, chunk: list[Portion]) -> _Pixels:
        indices = np.concatenate([portion.indices for portion in chunk])
        repetitions = np.concatenate([portion.repetitions for portion in chunk])

        def numbers(kind: int, count: int) -> NDArray[np.float64]:
            return uniforms(kind, self._seed, chunk[0].epoch, indices, repetitions, count)

        strong = self._views.strong(self._images, indices, numbers(STRONG, self._views.strong_numbers))
        weak = None
        if self._two_views:
            weak = self._views.weak(self._images, indices, numbers(WEAK, self._views.weak_numbers))
        (order,) = sent([indices], self._images.device)
        return _Pixels(order, strong, weak)


def _check_suitable(data: LongTailedData, config: ViewConfig) -> None:
    advice = "leave --device-views out"
    if config.crop != "padded":
        raise DataError(
            f"Views on the device take the padded crop, not the {config.crop} one; set views.crop=padded or {advice}."
        )
    if isinstance(data.train, FileImageSet) and not data.train.cached:
        raise DataError(
            f"The training images of {data.name} do not fit into their cache, so views cannot be made on the device; "
            f"raise data.cache_mb or {advice}."
        )
    if not data.train.fits(data.preprocessing):
        raise DataError(f"The training images of {data.name} do not have the model's size; {advice}.")


def _all_pixels(data: LongTailedData, threads: int) -> NDArray[np.uint8]:
    """uint8 (n, H, W, 3)."""
    with ThreadPoolExecutor(max(threads, 1)) as pool:
        return np.stack(list(pool.map(data.train.pixels, range(len(data.train)))))
