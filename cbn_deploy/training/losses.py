"""The paper's losses (Section 3.4). Shapes: B images, K classes; every loss is the mean over the batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["balanced_softmax", "consistency", "cross_entropy", "log_class_prior", "view_consistency"]


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Softmax cross-entropy: ``-log softmax(o)[y]``; logits (B, K) float, labels (B,) int64 -> scalar."""
    return F.cross_entropy(logits, labels)


def log_class_prior(class_counts: Sequence[int]) -> Tensor:
    """``log(n_k / sum n)`` of the training counts: float32 (K,), what :func:`balanced_softmax` adds to the logits.

    Raises:
        ValueError: a class without training images (its balanced softmax is undefined).
    """
    if min(class_counts, default=0) < 1:
        raise ValueError(f"class_counts must all be at least 1, got {tuple(class_counts)}")
    counts = torch.tensor(list(class_counts), dtype=torch.float64)
    return (counts / counts.sum()).log().float()


def balanced_softmax(logits: Tensor, labels: Tensor, log_prior: Tensor) -> Tensor:
    """Balanced softmax, Eq. 20: ``-log( n_y exp(o_y) / sum_k n_k exp(o_k) )``.

    Args:
        logits: (B, K) float, o.
        labels: (B,) int64, y.
        log_prior: (K,) from :func:`log_class_prior` (the division by ``sum n`` cancels in Eq. 20).

    Returns:
        scalar.
    """
    return F.cross_entropy(logits + log_prior, labels)


def consistency(compound_strong: Tensor, split_strong: Tensor, compound_weak: Tensor, split_weak: Tensor) -> Tensor:
    """Cross-path consistency, Eq. 19: ``-S(o^c_strong, detach(o^s_weak)) - S(o^s_strong, detach(o^c_weak))``.

    S is the cosine of the angle between two logit vectors, so the value lies in [-2, 2]. All arguments (B, K); only
    the strong ones receive gradient. Logits of length zero count as orthogonal to everything.

    Returns:
        scalar.
    """
    towards_split = F.cosine_similarity(compound_strong, split_weak.detach(), dim=1)
    towards_compound = F.cosine_similarity(split_strong, compound_weak.detach(), dim=1)
    return -(towards_split + towards_compound).mean()


def view_consistency(strong: Tensor, weak: Tensor) -> Tensor:
    """Eq. 19 with one path: ``-2 S(o_strong, detach(o_weak))``, so that the weight means what it means there.

    Both arguments (B, K); returns a scalar in [-2, 2].
    """
    return consistency(strong, strong, weak, weak)
