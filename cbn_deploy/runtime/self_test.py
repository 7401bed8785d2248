"""A few synthetic images and the logits they must give: how a server proves that it computes what was exported.

``cbn-export`` records the logits of the checkpoint in float64, and how far the file may be from them. Whoever loads the
file makes the same images from their formula, runs them on the machine, runtime and kernels that are to answer, and
compares.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbn_deploy.errors import ModelFileError
from cbn_deploy.runtime.description import ModelDescription, Preprocessing
from cbn_deploy.runtime.preprocessing import normalize

__all__ = ["SELF_TEST_IMAGES", "SelfTest", "self_test_images"]

SELF_TEST_IMAGES = 4

# Knuth's multiplicative hash and two odd numbers of no relation to it, modulo 2^32.
_MULTIPLIERS = (2654435761, 2246822519, 3266489917)
_NOISE = 64  # of 256 grey levels


def self_test_images(preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Coloured slopes with noise on them, float32 (4, 3, H, W), preprocessed.

    Whole-number arithmetic alone decides the pixels, so that they are the same everywhere and for ever.
    """
    shape = (SELF_TEST_IMAGES, preprocessing.height, preprocessing.width, 3)
    image, row, column, channel = np.indices(shape, dtype=np.uint64)
    seed = 3 * image + channel + 1
    slope_down, slope_right, start = (_hash(seed + 16 * salt) for salt in np.arange(3, dtype=np.uint64))
    phase = start % 512 + row * (1 + slope_down % 24) + column * (1 + slope_right % 24)
    triangle = np.abs((phase % 511).astype(np.int64) - 255)  # up and down between 0 and 255
    noise = _hash(seed + 101 * row + 10007 * column) % _NOISE
    pixels = np.clip(triangle + noise.astype(np.int64) - _NOISE // 2, 0, 255)
    return normalize(pixels.astype(np.uint8), preprocessing)


def _hash(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    mask = np.uint64(0xFFFFFFFF)
    for multiplier in _MULTIPLIERS:
        value = ((value * np.uint64(multiplier)) & mask) ^ (value >> np.uint64(15))
        value = value ^ (value >> np.uint64(13))
    return value


@dataclass(frozen=True, kw_only=True)
class SelfTest:
    """What the synthetic images must give.

    Attributes:
        logits: (4, K), of the checkpoint in float64.
        allowed: (4,), the largest absolute difference that a logit of each image may have.
    """

    logits: NDArray[np.float64]
    allowed: NDArray[np.float64]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, for :attr:`ModelDescription.self_test`."""
        return {
            "logits": [[float(f"{value:.8g}") for value in row] for row in self.logits.tolist()],
            "allowed": [float(f"{value:.3g}") for value in self.allowed.tolist()],
        }

    @classmethod
    def of(cls, description: ModelDescription) -> SelfTest | None:
        """What a model file says of itself; ``None``: it was exported before there were self-tests.

        Raises:
            ModelFileError: the record is damaged.
        """
        return cls.from_dict(description.self_test, len(description.class_names)) if description.self_test else None

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any], classes: int) -> SelfTest:
        """Inverse of :meth:`to_dict`, for a model of ``classes`` classes.

        Raises:
            ModelFileError: the record is damaged.
        """
        try:
            logits = np.asarray(plain["logits"], dtype=np.float64)
            allowed = np.asarray(plain["allowed"], dtype=np.float64)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ModelFileError(f"The model's self-test is damaged ({error}); export it again.") from error
        if logits.shape != (SELF_TEST_IMAGES, classes) or allowed.shape != (SELF_TEST_IMAGES,):
            raise ModelFileError("The model's self-test does not fit its classes; export it again.")
        return cls(logits=logits, allowed=allowed)

    def check(self, logits: NDArray[np.float32]) -> None:
        """Compare what the loaded model makes of :func:`self_test_images`, (4, K).

        Raises:
            ModelFileError: a logit differs by more than is allowed, or is not finite.
        """
        error = np.abs(logits.astype(np.float64) - self.logits).max(axis=1)
        of_limit = np.where(np.isfinite(error), error / self.allowed, np.inf)
        worst = int(of_limit.argmax())
        if of_limit[worst] > 1:
            raise ModelFileError(
                f"The self-test failed: a logit is {error[worst]:.3g} away from what was exported, where "
                f"{self.allowed[worst]:.3g} is allowed; the file is damaged, or this machine computes it wrongly."
            )
