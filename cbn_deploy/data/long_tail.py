"""The long-tail literature's training subset: exponentially falling counts and the usual choice of images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cbn_deploy.errors import DataError

__all__ = ["long_tail_counts", "long_tail_subset"]


def long_tail_counts(n_max: int, rho: float, num_classes: int) -> list[int]:
    """Training images a class: ``int(n_max * (1 / rho) ** (k / (K - 1)))`` for k = 0 ... K-1, truncated.

    Args:
        n_max: images of class 0, at least 1.
        rho: imbalance n_max / n_min, at least 1 (1 is balanced).
        num_classes: K, at least 1.
    """
    if n_max < 1 or num_classes < 1:
        raise ValueError(f"n_max and num_classes must be at least 1, got {n_max} and {num_classes}")
    if not rho >= 1:
        raise ValueError(f"rho must be at least 1, got {rho}")
    last = max(num_classes - 1, 1)
    return [int(n_max * (1 / rho) ** (k / last)) for k in range(num_classes)]


def long_tail_subset(labels: NDArray[np.integer], counts: Sequence[int], seed: int = 0) -> NDArray[np.int64]:
    """Indices of the long-tailed subset: ascending classes; of each, the first ``counts[k]`` after one shuffle.

    One ``numpy.random.RandomState(seed)`` serves all classes in turn, so subsets of different rho are nested.

    Args:
        labels: (n,) class of every image, 0 ... K-1.
        counts: K images to keep of each class.
        seed: of the RandomState; the published subsets use 0.

    Returns:
        int64 (sum of counts,), class after class.

    Raises:
        DataError: a class has fewer images than asked for.
    """
    random_state = np.random.RandomState(seed)
    chosen = []
    for label, count in enumerate(counts):
        indices = np.flatnonzero(labels == label)
        if len(indices) < count:
            raise DataError(
                f"Class {label} has {len(indices)} training images but {count} are asked for; choose a larger rho "
                "or bring the complete data set."
            )
        random_state.shuffle(indices)
        chosen.append(indices[:count])
    return np.concatenate(chosen).astype(np.int64)
