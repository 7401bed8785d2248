"""The losses. Shapes: B images, K classes; every loss is the mean over the batch.

Classification losses take logits o (B, K) float, labels y (B,) int64 and, last, ``weights`` (K,), a factor w on each
image's loss by its class (:func:`cbn_deploy.training.class_tables.class_weights`); ``None`` weighs all alike. The
result is the scalar ``1/B sum_i w_{y_i} loss_i``: divided by the number of images, not by the sum of their weights, so
that a batch's result does not depend on which classes happen to share it, and parts of a batch can be averaged. A
batch without images, such as one rank's part of a very small batch, has loss 0.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "balanced_softmax",
    "consistency",
    "cross_entropy",
    "focal",
    "ldam",
    "logit_adjustment",
    "vector_scaling",
    "view_consistency",
]


def cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Softmax cross-entropy: ``-log softmax(o)[y]``."""
    if weights is None:
        return F.cross_entropy(logits, labels, reduction="sum") / max(1, len(labels))
    return _weighted_mean(F.cross_entropy(logits, labels, reduction="none"), labels, weights)


def balanced_softmax(logits: Tensor, labels: Tensor, log_prior: Tensor, weights: Tensor | None = None) -> Tensor:
    """Balanced softmax, Eq. 20: ``-log( n_y exp(o_y) / sum_k n_k exp(o_k) )``.

    Args:
        logits: (B, K).
        labels: (B,).
        log_prior: (K,) of :func:`cbn_deploy.training.class_tables.log_class_prior` (``sum n`` cancels in Eq. 20).
        weights: (K,) or ``None``.
    """
    return cross_entropy(logits + log_prior, labels, weights)


def focal(logits: Tensor, labels: Tensor, gamma: float, weights: Tensor | None = None) -> Tensor:
    """Focal loss, Eq. 4 of Lin et al. (2017) on a softmax: ``-(1 - p_y)^gamma log p_y`` with ``p = softmax(o)``.

    Args:
        logits: (B, K).
        labels: (B,).
        gamma: at least 0; 0 is the cross-entropy.
        weights: (K,), the paper's alpha, or ``None``.
    """
    log_p = F.log_softmax(logits, dim=1).gather(1, labels[:, None]).squeeze(1)
    # 0 has no finite slope where gamma is below 1.
    miss = (-torch.expm1(log_p)).clamp_min(torch.finfo(log_p.dtype).tiny)
    return _weighted_mean(-(miss**gamma) * log_p, labels, weights)


def ldam(logits: Tensor, labels: Tensor, margins: Tensor, scale: float, weights: Tensor | None = None) -> Tensor:
    """The LDAM loss of Cao et al. (2019): margins by class, on normalised logits scaled by s.

    ``-log( exp(s (z_y - Delta_y)) / ( exp(s (z_y - Delta_y)) + sum_{k != y} exp(s z_k) ) )``

    Args:
        logits: (B, K), ``s z`` with z in [-1, 1] the cosines of :class:`cbn_deploy.models.classifier.CosineClassifier`.
        labels: (B,).
        margins: (K,) of :func:`cbn_deploy.training.class_tables.ldam_margins`, Delta, in units of z.
        scale: s.
        weights: (K,) or ``None``.
    """
    margin = scale * margins.to(logits.dtype)[labels]
    return cross_entropy(logits.scatter_add(1, labels[:, None], -margin[:, None]), labels, weights)


def logit_adjustment(
    logits: Tensor, labels: Tensor, log_prior: Tensor, tau: float, weights: Tensor | None = None
) -> Tensor:
    """Logit-adjusted softmax cross-entropy, Eq. 10 of Menon et al. (2021).

    ``log( 1 + sum_{k != y} (pi_k / pi_y)^tau exp(o_k - o_y) )``; tau = 1 is the balanced softmax, 0 the cross-entropy.

    Args:
        logits: (B, K).
        labels: (B,).
        log_prior: (K,), log pi, of :func:`cbn_deploy.training.class_tables.log_class_prior`.
        tau: at least 0.
        weights: (K,) or ``None``.
    """
    return cross_entropy(logits + tau * log_prior, labels, weights)


def vector_scaling(
    logits: Tensor, labels: Tensor, factors: Tensor, log_prior: Tensor, tau: float, weights: Tensor | None = None
) -> Tensor:
    """The VS loss of Kini et al. (2021): cross-entropy of ``Delta_k o_k + tau log pi_k``.

    Args:
        logits: (B, K).
        labels: (B,).
        factors: (K,) of :func:`cbn_deploy.training.class_tables.vector_scaling_factors`, Delta.
        log_prior: (K,), log pi, of :func:`cbn_deploy.training.class_tables.log_class_prior`.
        tau: at least 0.
        weights: (K,), the paper's omega, or ``None``.
    """
    return cross_entropy(factors * logits + tau * log_prior, labels, weights)


def consistency(compound_strong: Tensor, split_strong: Tensor, compound_weak: Tensor, split_weak: Tensor) -> Tensor:
    """Cross-path consistency, Eq. 19: ``-S(o^c_strong, detach(o^s_weak)) - S(o^s_strong, detach(o^c_weak))``.

    S is the cosine of the angle between two logit vectors, so the value lies in [-2, 2]. All arguments (B, K); only
    the strong ones receive gradient. Logits of length zero count as orthogonal to everything.

    Returns:
        scalar.
    """
    towards_split = F.cosine_similarity(compound_strong, split_weak.detach(), dim=1)
    towards_compound = F.cosine_similarity(split_strong, compound_weak.detach(), dim=1)
    return _mean(-(towards_split + towards_compound))


def view_consistency(strong: Tensor, weak: Tensor) -> Tensor:
    """Eq. 19 with one path: ``-2 S(o_strong, detach(o_weak))``, so that the weight means what it means there.

    Both arguments (B, K); returns a scalar in [-2, 2].
    """
    return consistency(strong, strong, weak, weak)


def _weighted_mean(losses: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
    return _mean(losses if weights is None else weights[labels] * losses)


def _mean(losses: Tensor) -> Tensor:
    return losses.sum() / max(1, len(losses))
