"""What the parity gate feeds the model: real images and extremes, one by one, reproducible by seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cbn_deploy.data.image_set import read_image
from cbn_deploy.errors import DataError, ImageError
from cbn_deploy.prediction.image_names import image_names
from cbn_deploy.runtime.description import Preprocessing
from cbn_deploy.runtime.preprocessing import normalize, resize

__all__ = ["EXTREMES", "REAL", "ParityInputs", "default_count", "image_files", "read_images"]

REAL = "real image"

# Inputs for images of up to 64 x 64 pixels, and the fewest for larger ones: a ResNet-50 at 224 x 224 takes seconds an
# input, in float32, in float64 and with every activation looked at.
_MOST, _FEWEST = 256, 64
_SMALL_IMAGE = 64 * 64

Pixels = NDArray[np.uint8]
_Extreme = Callable[[np.random.Generator, Preprocessing], NDArray[np.float32]]


def _of_pixels(make: Callable[[np.random.Generator, int, int], Pixels]) -> _Extreme:
    def extreme(rng: np.random.Generator, preprocessing: Preprocessing) -> NDArray[np.float32]:
        return normalize(make(rng, preprocessing.height, preprocessing.width), preprocessing)

    return extreme


def _constant(value: int) -> _Extreme:
    return _of_pixels(lambda _rng, height, width: np.full((height, width, 3), value, np.uint8))


def _colour(rng: np.random.Generator, height: int, width: int) -> Pixels:
    return np.broadcast_to(rng.integers(0, 256, 3, dtype=np.uint8), (height, width, 3))


def _primary(rng: np.random.Generator, height: int, width: int) -> Pixels:
    return np.broadcast_to(rng.integers(0, 2, 3, dtype=np.uint8) * np.uint8(255), (height, width, 3))


def _uniform_noise(rng: np.random.Generator, height: int, width: int) -> Pixels:
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def _saturated_noise(rng: np.random.Generator, height: int, width: int) -> Pixels:
    saturated: Pixels = rng.integers(0, 2, (height, width, 3), dtype=np.uint8) * np.uint8(255)
    return saturated


def _grey(values: NDArray[np.floating]) -> Pixels:
    return np.repeat(values.astype(np.uint8)[..., None], 3, axis=2)


def _checkerboard(rng: np.random.Generator, height: int, width: int) -> Pixels:
    period, phase = int(2 ** rng.integers(0, 4)), int(rng.integers(0, 2))
    rows, columns = np.indices((height, width)) // period
    return _grey((rows + columns + phase) % 2 * 255.0)


def _gradient(rng: np.random.Generator, height: int, width: int) -> Pixels:
    rows, columns = np.indices((height, width))
    angle = rng.uniform(0, 2 * np.pi)
    ramp = np.cos(angle) * rows / height + np.sin(angle) * columns / width
    return np.repeat(
        (255 * (ramp - ramp.min()) / max(float(np.ptp(ramp)), 1e-9)).astype(np.uint8)[..., None], 3, axis=2
    )


def _hot_pixel(rng: np.random.Generator, height: int, width: int) -> Pixels:
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[rng.integers(0, height), rng.integers(0, width)] = 255
    return pixels


def _signs(sigmas: float) -> _Extreme:
    def extreme(rng: np.random.Generator, preprocessing: Preprocessing) -> NDArray[np.float32]:
        signs = rng.integers(0, 2, (3, preprocessing.height, preprocessing.width)) * 2 - 1
        return (signs * sigmas).astype(np.float32)

    return extreme


def _gaussian(sigmas: float) -> _Extreme:
    def extreme(rng: np.random.Generator, preprocessing: Preprocessing) -> NDArray[np.float32]:
        shape = (3, preprocessing.height, preprocessing.width)
        return (rng.standard_normal(shape) * sigmas).astype(np.float32)

    return extreme


EXTREMES: dict[str, _Extreme] = {
    "black": _constant(0),
    "white": _constant(255),
    "mid grey": _constant(128),
    "one colour": _of_pixels(_colour),
    "one primary colour": _of_pixels(_primary),
    "uniform noise": _of_pixels(_uniform_noise),
    "saturated noise": _of_pixels(_saturated_noise),
    "checkerboard": _of_pixels(_checkerboard),
    "gradient": _of_pixels(_gradient),
    "hot pixel": _of_pixels(_hot_pixel),
    "8 sigma": _signs(8.0),
    "noise of 0.001 sigma": _gaussian(1e-3),
    "noise of 1 sigma": _gaussian(1.0),
    "noise of 100 sigma": _gaussian(100.0),
}


class ParityInputs:
    """A sequence of inputs: the real images first, then the extremes in turn; each is made when it is asked for.

    Args:
        preprocessing: the model's.
        real: uint8 (n, H, W, 3) at model size, n may be 0; at most half of ``count`` is used, evenly spread.
        count: how many inputs in all.
        seed: of the extremes; the same seed gives the same inputs whatever the order they are asked for.
    """

    def __init__(self, preprocessing: Preprocessing, real: Pixels, count: int, seed: int) -> None:
        if count < 2 * len(EXTREMES):
            raise ValueError(f"count must be at least {2 * len(EXTREMES)}, so that every extreme appears, got {count}")
        self._preprocessing = preprocessing
        used = min(len(real), count // 2)
        self._real = real[np.linspace(0, len(real) - 1, used).round().astype(int)] if used else real[:0]
        self._count, self._seed = count, seed
        self._names = tuple(EXTREMES)

    def __len__(self) -> int:
        return self._count

    @property
    def real_count(self) -> int:
        """How many of the inputs are real images."""
        return len(self._real)

    def kind(self, index: int) -> str:
        """:data:`REAL`, or the name of the extreme."""
        return REAL if index < len(self._real) else self._names[(index - len(self._real)) % len(self._names)]

    def batch(self, indices: Sequence[int]) -> NDArray[np.float32]:
        """Preprocessed inputs, float32 (len(indices), 3, H, W)."""
        return np.stack([self._one(index) for index in indices])

    def _one(self, index: int) -> NDArray[np.float32]:
        if index < len(self._real):
            return normalize(self._real[index], self._preprocessing)
        return EXTREMES[self.kind(index)](np.random.default_rng((self._seed, index)), self._preprocessing)


def default_count(preprocessing: Preprocessing) -> int:
    """How many inputs the gate uses unless told otherwise: 256, fewer in proportion for larger images, at least 64."""
    pixels = preprocessing.height * preprocessing.width
    return max(_FEWEST, min(_MOST, _MOST * _SMALL_IMAGE // pixels))


def read_images(folder: Path, preprocessing: Preprocessing, limit: int) -> Pixels:
    """Up to ``limit`` image files under ``folder``, evenly spread over its sorted listing, at model size.

    Returns:
        uint8 (n, H, W, 3), n >= 1.

    Raises:
        DataError: the folder does not exist, holds no image, or holds one that cannot be read.
    """
    paths = image_files(folder)
    chosen = [paths[i] for i in np.linspace(0, len(paths) - 1, min(limit, len(paths))).round().astype(int)]
    return np.stack([_read(path, preprocessing) for path in chosen])


def image_files(folder: Path) -> list[Path]:
    """Every image file under ``folder``, sorted, at least one; hidden ones are passed over, as in training.

    Raises:
        DataError: the folder does not exist, cannot be read or holds no image.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; give a folder of images.")
    paths = sorted(folder / name for name in image_names(folder))
    if not paths:
        raise DataError(f"{folder} holds no JPEG, PNG, WebP or BMP file; give a folder of images.")
    return paths


def _read(path: Path, preprocessing: Preprocessing) -> Pixels:
    try:
        return resize(read_image(path), preprocessing)
    except (ImageError, DataError) as error:
        raise DataError(f"{path} cannot be used for the parity check: {error}") from error
