"""No answer rests on numbers that are none: a ranking of NaN ranks nothing, and NaN is above no threshold."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.errors import ApiError
from serving.images import which_image

__all__ = ["require_finite"]


def require_finite(*tensors: NDArray[np.floating[Any]]) -> None:
    """Demand finite numbers only in what a model gives for n images: tensors (n, ...).

    Raises:
        ApiError: 500; it names the first image with another number.
    """
    for tensor in tensors:
        finite = np.isfinite(tensor)
        if not finite.all():
            first = int(np.argmin(finite.reshape(len(tensor), -1).all(axis=1)))
            which = which_image(first + 1, len(tensor))
            raise ApiError(500, f"The model gives no finite answer to {which[0].lower()}{which[1:]}.")
