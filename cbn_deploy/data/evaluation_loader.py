"""Batches for evaluation: the images in order, prepared exactly as the server would."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from cbn_deploy.data.image_set import FileImageSet, ImageSet
from cbn_deploy.data.pixels import PixelNormalizer
from cbn_deploy.errors import CbnError
from cbn_deploy.runtime.description import Preprocessing

__all__ = ["evaluation_batches"]

_Pixels = NDArray[np.uint8]


class _PixelDataset(Dataset["torch.Tensor | CbnError"]):
    """Images at the model's size by their indices: uint8 (B, H, W, 3)."""

    def __init__(self, images: ImageSet, preprocessing: Preprocessing) -> None:
        self._images = images
        self._preprocessing = preprocessing

    def __getitem__(self, indices: range) -> torch.Tensor | CbnError:
        # Returned, not raised: torch buries an error raised in a worker under that process's traceback.
        try:
            pixels = [self._images.resized(index, self._preprocessing) for index in indices]
            return torch.from_numpy(np.stack(pixels))
        except CbnError as error:
            return error


def _identity(pixels: torch.Tensor | CbnError) -> torch.Tensor | CbnError:
    return pixels


def evaluation_batches(
    images: ImageSet,
    preprocessing: Preprocessing,
    batch_size: int,
    *,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The images in order, exactly as the server would prepare them: float32 (B, 3, H, W) and labels int64 (B,).

    Of several ranks each gets every ``world_size``-th batch, the first from batch ``rank``.

    Args:
        images: the set.
        preprocessing: the model's; the set's own if the model was trained on it.
        batch_size: images a batch.
        rank: of this process.
        world_size: processes that share the set.
        workers: processes that decode; images that lie in memory, or will after their first use, need none.

    Raises:
        DataError: while iterating, an image that cannot be read.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    starts = range(rank * batch_size, len(images), world_size * batch_size)
    batches = [range(start, min(start + batch_size, len(images))) for start in starts]
    if not (isinstance(images, FileImageSet) and not images.cached):
        workers = 0
    loader: DataLoader[torch.Tensor | CbnError] = DataLoader(
        _PixelDataset(images, preprocessing),
        batch_size=None,
        sampler=batches,
        collate_fn=_identity,  # type: ignore[arg-type]  # one batch, where torch declares a list
        num_workers=workers,
        generator=torch.Generator(),  # not the global one, which is the model's
        multiprocessing_context="spawn" if workers > 0 else None,
    )
    normalize = PixelNormalizer(preprocessing, torch.device("cpu"))
    for indices, pixels in zip(batches, loader, strict=True):
        if isinstance(pixels, CbnError):
            raise pixels
        yield normalize(pixels), torch.from_numpy(images.labels[indices.start : indices.stop].copy())
