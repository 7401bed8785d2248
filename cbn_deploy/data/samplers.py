"""Which images an epoch shows, and in which order: as they are, or re-sampled towards the rare classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["Sampling", "epoch_order", "repetitions", "sampled_class_distribution"]

Sampling: TypeAlias = Literal["instance_balanced", "square_root", "class_balanced"]
# q of Kang et al. (2020), Eq. 1.
_EXPONENTS: dict[Sampling, float] = {"instance_balanced": 1.0, "square_root": 0.5, "class_balanced": 0.0}
# The first word of the generator's seed: the loader's word for an epoch's order.
_ORDER = 1


def sampled_class_distribution(class_counts: Sequence[int], sampling: Sampling) -> NDArray[np.float64]:
    """The share of each class in what the network is shown, Eq. 1 of Kang et al. (2020): ``p_k = n_k^q / sum_i n_i^q``.

    q is 1 for "instance_balanced" (every image equally often), 1/2 for "square_root" and 0 for "class_balanced".

    Args:
        class_counts: K training counts n; a class without images has share 0 under every sampling.
        sampling: how the images are drawn.

    Returns:
        float64 (K,), which sums to 1.

    Raises:
        ValueError: an unknown sampling, a negative count, or no image at all.
    """
    if sampling not in _EXPONENTS:
        raise ValueError(f"sampling must be one of {', '.join(_EXPONENTS)}, got {sampling!r}")
    counts = np.asarray(class_counts, dtype=np.float64)
    if counts.ndim != 1 or not counts.sum() > 0 or counts.min() < 0:
        raise ValueError(f"class_counts must be counts of at least one image in all, got {tuple(class_counts)}")
    weights = np.where(counts > 0, counts ** _EXPONENTS[sampling], 0.0)
    shares: NDArray[np.float64] = weights / weights.sum()
    return shares


def epoch_order(labels: NDArray[np.int64], sampling: Sampling, *, seed: int, epoch: int) -> NDArray[np.int64]:
    """The n images of one epoch in their order; a function of the arguments alone.

    "instance_balanced" is a permutation: every image once. The other samplings draw n classes independently from
    :func:`sampled_class_distribution`, then take each class's images in turn, in a random order that is drawn anew
    whenever all of them have been taken: within a class no image is shown more than once more often than another.

    Args:
        labels: int64 (n,), classes 0..K-1 of the training images.
        sampling: how to draw.
        seed: 0 ... 2**32 - 1.
        epoch: 0-based.

    Returns:
        int64 (n,), indices into the training set.
    """
    generator = np.random.default_rng((_ORDER, seed, epoch))
    if sampling == "instance_balanced":
        return generator.permutation(len(labels))
    counts = np.bincount(labels)
    shares = sampled_class_distribution(counts.tolist(), sampling)
    classes = generator.choice(len(counts), size=len(labels), p=shares)
    order = np.empty(len(labels), dtype=np.int64)
    for k in np.unique(classes):
        places, members = np.flatnonzero(classes == k), np.flatnonzero(labels == k)
        rounds = -(-len(places) // len(members))
        turns = np.concatenate([generator.permutation(members) for _ in range(rounds)])
        order[places] = turns[: len(places)]
    return order


def repetitions(order: NDArray[np.int64]) -> NDArray[np.int64]:
    """How often each entry of ``order`` (n,) has come before it: int64 (n,), all zero for a permutation."""
    by_index = np.argsort(order, kind="stable")
    _, starts, counts = np.unique(order[by_index], return_index=True, return_counts=True)
    before = np.empty_like(order)
    before[by_index] = np.arange(len(order)) - np.repeat(starts, counts)
    return before
