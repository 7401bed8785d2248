"""digits-lt: scikit-learn's 1,797 real handwritten digits, long-tailed. Ships with scikit-learn: no download."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cbn_deploy.data.image_set import ArrayImageSet, LongTailedData
from cbn_deploy.data.long_tail import long_tail_counts, long_tail_subset
from cbn_deploy.errors import DataError, RuntimeUnavailableError
from cbn_deploy.runtime.description import Preprocessing

__all__ = ["DEFAULT_RHO", "TEST_IMAGES_PER_CLASS", "load_digits_lt"]

# The rarest digit has 174 images: 40 for the test leave 134, so a head of 130 fits any choice of test images.
TEST_IMAGES_PER_CLASS = 40
_HEAD_IMAGES = 130
DEFAULT_RHO = 20.0

_SIZE = 32
# Mean and standard deviation of all 1,797 upscaled digits.
_PREPROCESSING = Preprocessing(
    height=_SIZE, width=_SIZE, interpolation="bicubic", mean=(0.309, 0.309, 0.309), std=(0.349, 0.349, 0.349)
)


def load_digits_lt(rho: float = DEFAULT_RHO, seed: int = 0) -> LongTailedData:
    """8x8 digits, upscaled to 32x32 RGB: 40 test images of each class, a long-tailed training set from the rest.

    Args:
        rho: training images of digit 0 over those of digit 9 (130 over 6 at the default of 20).
        seed: chooses the test images and the training subset.

    Raises:
        RuntimeUnavailableError: scikit-learn is not installed.
        DataError: rho leaves a class without training images.
    """
    pixels, labels = _read()
    test = long_tail_subset(labels, [TEST_IMAGES_PER_CLASS] * 10, seed)
    pool = np.setdiff1d(np.arange(len(labels)), test)
    counts = long_tail_counts(_HEAD_IMAGES, rho, 10)
    if counts[-1] < 1:
        raise DataError(f"rho={rho:g} leaves digit 9 without training images; use at most {_HEAD_IMAGES}.")
    train = pool[long_tail_subset(labels[pool], counts, seed)]
    return LongTailedData(
        name="digits-lt",
        train=ArrayImageSet(_upscale(pixels[train]), labels[train], train),
        test=ArrayImageSet(_upscale(pixels[test]), labels[test], test),
        class_names=tuple(str(digit) for digit in range(10)),
        preprocessing=_PREPROCESSING,
    )


def _read() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Ink 0..16 as uint8 (1797, 8, 8) 0..255, and the digits (1797,)."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise RuntimeUnavailableError(
            "digits-lt needs scikit-learn; install it with: pip install 'cbn-deploy[train]'."
        ) from error
    bunch = load_digits()
    return np.round(bunch.images * (255 / 16)).astype(np.uint8), bunch.target.astype(np.int64)


def _upscale(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Grey (n, 8, 8) -> RGB (n, 32, 32, 3), bicubic."""
    size = (_SIZE, _SIZE)
    grey = np.stack([np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)) for image in pixels])
    return np.repeat(grey[..., None], 3, axis=-1)
