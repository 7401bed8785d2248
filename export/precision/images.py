"""Images one by one, as the model sees them, and what tells two of them apart: their content."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from cbn_deploy.data import ImageSet
from cbn_deploy.runtime.description import Preprocessing
from cbn_deploy.runtime.preprocessing import resize

__all__ = ["digest", "pixels"]


def pixels(images: ImageSet, index: int, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """One image at the model's size: uint8 (H, W, 3).

    Raises:
        DataError: its file is missing or damaged.
    """
    if images.fits(preprocessing):
        return images.pixels(index)
    return resize(images.image(index), preprocessing)


def digest(image: NDArray[np.uint8]) -> bytes:
    """SHA-256 of the pixels at the model's size: equal for copies of an image under other names or formats."""
    return hashlib.sha256(np.ascontiguousarray(image).tobytes()).digest()
