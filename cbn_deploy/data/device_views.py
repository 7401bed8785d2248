"""The weak and the strong view of whole batches in torch, on any device, with the pixels of :class:`Views`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cbn_deploy.data.autoaugment import POLICIES
from cbn_deploy.data.config import ViewConfig
from cbn_deploy.data.device_autoaugment import DeviceOperations, PolicyCases
from cbn_deploy.data.transforms import Views
from cbn_deploy.runtime.description import Preprocessing

__all__ = ["DeviceViews", "sent"]

_Integers = NDArray[np.int64]
_Numbers = NDArray[np.float64]


class DeviceViews:
    """Views of many images at once, from the numbers that each image's own generator gives.

    What the numbers choose is worked out on the host and crosses to the device in one copy; nothing waits for the
    device.

    Args:
        config: what to do; every setting of the padded crop, with either policy.
        preprocessing: size of the images and views; its mean colour fills what is left empty.
        device: where the images are.

    Raises:
        ValueError: the crop is not the padded one.

    Attributes:
        weak_numbers: how many numbers in [0, 1) a weak view takes: crop 2, flip 1 if there is one.
        strong_numbers: the same for a strong view: those of the weak one, AutoAugment 5, cutout 2, if there are any.
    """

    def __init__(self, config: ViewConfig, preprocessing: Preprocessing, device: torch.device) -> None:
        if config.crop != "padded":
            raise ValueError(f"views on a device take crop='padded', got {config.crop!r}")
        self.config = config
        self._device = device
        self._size = (preprocessing.height, preprocessing.width)
        self._down, self._across = (torch.arange(side, device=device) for side in self._size)
        fill = Views(config, preprocessing).fill
        self._fill = torch.tensor(fill, dtype=torch.uint8, device=device)
        self.weak_numbers = 2 + config.flip
        self.strong_numbers = self.weak_numbers + 5 * config.autoaugment + 2 * bool(config.cutout)
        if config.autoaugment:
            self._policy = PolicyCases(POLICIES[config.policy])
            self._operations = DeviceOperations(self._policy.cases, self._size, fill, device)

    def weak(self, images: Tensor, indices: _Integers, numbers: _Numbers) -> Tensor:
        """Crop and flip.

        Args:
            images: uint8 (n, H, W, 3), contiguous, on the device.
            indices: int64 (N,), which image each view is of; on the host.
            numbers: float64 (N, :attr:`weak_numbers`), what ``random()`` of each view's generator gives first.

        Returns:
            uint8 (N, H, W, 3) on the device.
        """
        self._check(images, indices, numbers, self.weak_numbers)
        return self._cropped(images, sent(self._crop_plan(indices, numbers), self._device))

    def strong(self, images: Tensor, indices: _Integers, numbers: _Numbers) -> Tensor:
        """Crop, flip, AutoAugment, cutout; see :meth:`weak`, with :attr:`strong_numbers` numbers."""
        self._check(images, indices, numbers, self.strong_numbers)
        rest = numbers[:, self.weak_numbers :]
        groups = []
        if self.config.autoaugment:
            groups = [group for cases in self._policy.chosen(rest[:, :5]) for group in self._operations.groups(cases)]
        plan = [*self._crop_plan(indices, numbers), *(array for group in groups for array in group[1:])]
        if self.config.cutout:
            plan += self._cutout_plan(rest[:, -2:])
        arrays = sent(plan, self._device)
        pixels = self._cropped(images, arrays)
        for group in groups:
            self._operations.apply(pixels, group.kind, next(arrays), next(arrays))
        return self._hidden(pixels, arrays) if self.config.cutout else pixels

    def _check(self, images: Tensor, indices: _Integers, numbers: _Numbers, count: int) -> None:
        if images.dtype != torch.uint8 or images.shape[1:] != (*self._size, 3) or not images.is_contiguous():
            raise ValueError(
                f"images must be contiguous uint8 (n, {self._size[0]}, {self._size[1]}, 3), "
                f"got {images.dtype} {tuple(images.shape)}"
            )
        if numbers.shape != (len(indices), count):
            raise ValueError(f"numbers must have shape ({len(indices)}, {count}), got {numbers.shape}")

    def _crop_plan(self, indices: _Integers, numbers: _Numbers) -> list[_Integers]:
        """Place of each image's first pixel, row and column of the view's first one, and the step between columns."""
        height, width = self._size
        padding = self.config.padding
        top, left = (numbers[:, :2] * (2 * padding + 1)).astype(np.int64).T - padding
        mirrored = numbers[:, 2] < 0.5 if self.config.flip else np.zeros(len(indices), np.bool_)
        first = np.where(mirrored, left + width - 1, left)
        return [indices * (height * width), top, first, np.where(mirrored, -1, 1)]

    def _cropped(self, images: Tensor, arrays: Iterator[Tensor]) -> Tensor:
        height, width = self._size
        start, top, first, step = (next(arrays)[:, None] for _ in range(4))
        rows, columns = top + self._down, first + step * self._across
        sources = (start + rows.clamp(0, height - 1) * width)[:, :, None] + columns.clamp(0, width - 1)[:, None, :]
        inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
        return images.view(-1, 3)[sources] * inside[..., None]

    def _cutout_plan(self, numbers: _Numbers) -> list[_Integers]:
        """First row and column of each square."""
        centres = (numbers * self._size).astype(np.int64)
        return list(centres.T - self.config.cutout // 2)

    def _hidden(self, pixels: Tensor, arrays: Iterator[Tensor]) -> Tensor:
        side = self.config.cutout
        down, across = self._down - next(arrays)[:, None], self._across - next(arrays)[:, None]
        hidden = ((down >= 0) & (down < side))[:, :, None] & ((across >= 0) & (across < side))[:, None, :]
        return torch.where(hidden[..., None], self._fill, pixels)


def sent(arrays: Sequence[_Integers], device: torch.device) -> Iterator[Tensor]:
    """One-dimensional arrays on the device, in their order, by one copy that the host does not wait for."""
    packed = torch.from_numpy(np.concatenate(arrays))
    if device.type == "cuda":
        packed = packed.pin_memory()
    return iter(torch.split(packed.to(device, non_blocking=True), [len(array) for array in arrays]))
