"""Images one by one, as the model sees them, and what tells two of them apart: their content."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from cbn_deploy.data import ImageSet
from cbn_deploy.runtime.description import Preprocessing

__all__ = ["digest", "pixels"]


def pixels(images: ImageSet, index: int, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """One image at the model's size: uint8 (H, W, 3).

    Raises:
        DataError: its file is missing, damaged or too elongated.
    """
    return images.pixels(index) if images.fits(preprocessing) else images.resized(index, preprocessing)


def digest(image: NDArray[np.uint8]) -> bytes:
    """SHA-256 of the pixels at the model's size: equal for copies of an image under other names or formats."""
    return hashlib.sha256(np.ascontiguousarray(image).tobytes()).digest()
