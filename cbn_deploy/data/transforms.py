"""The weak and the strong view of a training image (Section 3.4): uint8 in, uint8 out, all randomness from outside."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cbn_deploy.data.autoaugment import POLICIES, Fill, autoaugment
from cbn_deploy.data.config import ViewConfig
from cbn_deploy.data.image_set import Box, ImageSet
from cbn_deploy.runtime.description import Preprocessing

__all__ = ["Views", "cutout", "padded_crop", "random_box"]

Pixels = NDArray[np.uint8]


def padded_crop(pixels: Pixels, top: int, left: int, padding: int) -> Pixels:
    """Pad every side of (H, W, 3) with ``padding`` black pixels and cut H x W out at (top, left), 0 ... 2 * padding."""
    height, width = pixels.shape[:2]
    out = np.zeros_like(pixels)
    rows, columns = _overlap(height, top - padding), _overlap(width, left - padding)
    out[rows[0], columns[0]] = pixels[rows[1], columns[1]]
    return out


def _overlap(length: int, shift: int) -> tuple[slice, slice]:
    """Where a line of ``length`` pixels lands when the window moves by ``shift``: (target, source)."""
    kept = max(length - abs(shift), 0)
    return slice(max(-shift, 0), max(-shift, 0) + kept), slice(max(shift, 0), max(shift, 0) + kept)


def random_box(width: int, height: int, rng: np.random.Generator, min_area: float) -> Box:
    """A random part of an image: ``min_area`` ... 1 of its area, aspect ratio 3/4 ... 4/3; four numbers are drawn.

    A part that would not fit is clipped to the image.
    """
    area, ratio, across, down = rng.random(4).tolist()
    area = (min_area + (1 - min_area) * area) * width * height
    ratio = math.exp((2 * ratio - 1) * math.log(4 / 3))
    box_width = min(max(round(math.sqrt(area * ratio)), 1), width)
    box_height = min(max(round(math.sqrt(area / ratio)), 1), height)
    left, top = int(across * (width - box_width + 1)), int(down * (height - box_height + 1))
    return left, top, left + box_width, top + box_height


def cutout(pixels: Pixels, row: int, column: int, side: int, fill: Fill) -> Pixels:
    """Copy of (H, W, 3) with the square of ``side`` centred at (row, column) filled; it may reach over the edge."""
    out: Pixels = pixels.copy()
    top, left = row - side // 2, column - side // 2
    out[max(top, 0) : max(top + side, 0), max(left, 0) : max(left + side, 0)] = fill
    return out


class Views:
    """Draws views of the images of one set.

    Args:
        config: what to do.
        preprocessing: size of the views; its mean colour fills what geometric operations and cutout leave empty.
    """

    def __init__(self, config: ViewConfig, preprocessing: Preprocessing) -> None:
        self.config = config
        self.size = (preprocessing.height, preprocessing.width)
        red, green, blue = (round(255 * mean) for mean in preprocessing.mean)
        self.fill: Fill = (red, green, blue)

    def weak(self, images: ImageSet, index: int, rng: np.random.Generator) -> Pixels:
        """Crop and flip: uint8 (H, W, 3)."""
        (cropped,) = self._cropped(images, index, [rng])
        return self._mirrored(cropped, rng)

    def strong(self, images: ImageSet, index: int, rng: np.random.Generator) -> Pixels:
        """Crop, flip, AutoAugment, cutout: uint8 (H, W, 3)."""
        return self._distorted(self.weak(images, index, rng), rng)

    def both(
        self, images: ImageSet, index: int, strong: np.random.Generator, weak: np.random.Generator
    ) -> tuple[Pixels, Pixels]:
        """What :meth:`strong` and :meth:`weak` give, for about one decoding of the image."""
        first, second = self._cropped(images, index, [strong, weak])
        return self._distorted(self._mirrored(first, strong), strong), self._mirrored(second, weak)

    def _cropped(self, images: ImageSet, index: int, rngs: Sequence[np.random.Generator]) -> list[Pixels]:
        config = self.config
        if config.crop == "resized":
            choices = [partial(random_box, rng=rng, min_area=config.min_area) for rng in rngs]
            return images.parts(index, choices, self.size)
        pixels = images.pixels(index)
        corners = ([int(u * (2 * config.padding + 1)) for u in rng.random(2).tolist()] for rng in rngs)
        return [padded_crop(pixels, top, left, config.padding) for top, left in corners]

    def _mirrored(self, pixels: Pixels, rng: np.random.Generator) -> Pixels:
        return pixels[:, ::-1] if self.config.flip and rng.random() < 0.5 else pixels

    def _distorted(self, pixels: Pixels, rng: np.random.Generator) -> Pixels:
        if self.config.autoaugment:
            pixels = np.asarray(autoaugment(Image.fromarray(pixels), rng, self.fill, POLICIES[self.config.policy]))
        if self.config.cutout:
            row, column = (int(u * side) for u, side in zip(rng.random(2).tolist(), self.size, strict=True))
            pixels = cutout(pixels, row, column, self.config.cutout, self.fill)
        return pixels
