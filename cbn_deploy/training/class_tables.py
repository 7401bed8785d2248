"""What the losses know of the classes: one number a class, from the training counts. float32 (K,) each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cbn_deploy.data.samplers import Sampling, sampled_class_distribution
from cbn_deploy.training.loss_config import ClassWeights

__all__ = ["class_weights", "ldam_margins", "log_class_prior", "vector_scaling_factors"]


def log_class_prior(class_counts: Sequence[int], sampling: Sampling = "instance_balanced") -> Tensor:
    """``log p_k``, p_k the share of class k in what the network is shown: ``n_k / sum n`` without re-sampling.

    Losses that add a class prior to the logits correct for the prior of the images that they see. That is why
    re-sampling changes it: a class-balanced sampler leaves nothing to correct.

    Raises:
        ValueError: a class without training images (its prior is zero, its log undefined).
    """
    _check(class_counts)
    return torch.from_numpy(sampled_class_distribution(class_counts, sampling)).log().float()


def class_weights(class_counts: Sequence[int], kind: ClassWeights, beta: float = 0.9999) -> Tensor:
    """The factor on an image's loss by its class, of mean 1 over the K classes.

    "none": 1. "inverse": in proportion to ``1 / n_k``. "effective_number": in proportion to
    ``(1 - beta) / (1 - beta^n_k)``, one over the effective number of Cui et al. (2019); beta = 0 weighs all alike,
    beta -> 1 is "inverse".

    Args:
        class_counts: K training counts, of the images themselves, whatever a sampler does with them.
        kind: which weights.
        beta: in [0, 1).

    Raises:
        ValueError: a class without training images, beta outside [0, 1), or an unknown kind.
    """
    _check(class_counts)
    if not 0 <= beta < 1:
        raise ValueError(f"beta must be in [0, 1), got {beta}")
    counts = torch.tensor(list(class_counts), dtype=torch.float64)
    if kind == "none":
        weights = torch.ones_like(counts)
    elif kind == "inverse":
        weights = 1 / counts
    elif kind == "effective_number":
        # 1 - beta^n without the cancellation of small n and beta near 1.
        weights = 1 / -torch.expm1(counts * torch.tensor(beta, dtype=torch.float64).log())
    else:
        raise ValueError(f"kind must be none, inverse or effective_number, got {kind!r}")
    return (weights / weights.mean()).float()


def ldam_margins(class_counts: Sequence[int], max_margin: float = 0.5) -> Tensor:
    """``Delta_k = C / n_k^(1/4)`` of the LDAM loss (Cao et al. 2019), C such that the rarest class has ``max_margin``.

    Raises:
        ValueError: a class without training images, or a margin that is not above 0.
    """
    _check(class_counts)
    if not max_margin > 0:
        raise ValueError(f"max_margin must be above 0, got {max_margin}")
    margins = torch.tensor(list(class_counts), dtype=torch.float64) ** -0.25
    return (max_margin * margins / margins.max()).float()


def vector_scaling_factors(class_counts: Sequence[int], gamma: float) -> Tensor:
    """``Delta_k = (n_k / n_max)^gamma`` of the VS loss (Kini et al. 2021): at most 1, smallest where rare.

    Raises:
        ValueError: a class without training images, or a negative gamma.
    """
    _check(class_counts)
    if gamma < 0:
        raise ValueError(f"gamma must be at least 0, got {gamma}")
    counts = torch.tensor(list(class_counts), dtype=torch.float64)
    return ((counts / counts.max()) ** gamma).float()


def _check(class_counts: Sequence[int]) -> None:
    if min(class_counts, default=0) < 1:
        raise ValueError(f"class_counts must all be at least 1, got {tuple(class_counts)}")
