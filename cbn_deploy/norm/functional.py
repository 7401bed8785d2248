"""The paper's equations as pure functions of tensors.

Notation: B images, D channels, H x W pixels, M components, N = B H W; x is (B, D, *spatial), statistics and affine
tables are (M, D), priors and masses are (M,). The compound path's efficient form is in :mod:`cbn_deploy.kernels`; here
it is as the paper prints it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

import cbn_deploy.kernels  # noqa: F401 - registers torch.ops.cbn

__all__ = [
    "Moments",
    "compound_batch_norm_naive",
    "gaussian_log_density",
    "group_moments",
    "moving_average",
    "posterior_naive",
]


class Moments(NamedTuple):
    """What one batch says about M Gaussians.

    Attributes:
        mass: (M,) effective number of pixels, sum_n w_nj.
        mean: (M, D) Eq. (11) or (17).
        var: (M, D) biased variance, Eq. (12) or (18), centred on ``mean``. Zero where ``mass`` is zero.
    """

    mass: Tensor
    mean: Tensor
    var: Tensor


def moving_average(old: Tensor, new: Tensor, momentum: float) -> Tensor:
    """Eq. (3), (4), (13)-(15) in torch's convention: (1 - momentum) old + momentum new.

    The paper's lambda weighs the OLD value, so ``momentum = 1 - lambda``.
    """
    return old + momentum * (new - old)


def gaussian_log_density(x: Tensor, mean: Tensor, var: Tensor, eps: float = 0.0) -> Tensor:
    """Log of Eq. (9): log N(x_n; mu_j, diag(var_j + eps)), (B, M, *spatial).

    The naive form, with its (B, M, D, *spatial) tensor.

    Eq. (9) prints (2 pi)^M where the density has (2 pi)^D; the factor cancels in Eq. (8).
    """
    spatial = (1,) * (x.ndim - 2)
    mean, var = mean.reshape(1, *mean.shape, *spatial), var.reshape(1, *var.shape, *spatial) + eps
    squared = (x.unsqueeze(1) - mean).square() / var
    return -0.5 * (squared + var.log() + math.log(2.0 * math.pi)).sum(2)


def posterior_naive(
    x: Tensor, tau: Tensor, mean: Tensor, var: Tensor, eps: float = 0.0, density_scale: float = 1.0
) -> Tensor:
    """Eq. (8), as printed but for log-sum-exp: (B, M, *spatial)."""
    log_prior = tau.log().reshape(1, -1, *(1,) * (x.ndim - 2))
    return torch.softmax(log_prior + density_scale * gaussian_log_density(x, mean, var, eps), dim=1)


def compound_batch_norm_naive(
    x: Tensor,
    tau: Tensor,
    mean: Tensor,
    var: Tensor,
    scale: Tensor,
    bias: Tensor,
    eps: float,
    density_scale: float = 1.0,
) -> Tensor:
    """Eq. (7), (8) and (16) as printed, with the (B, M, D, *spatial) tensor: for checking and for comparison only."""
    spatial = (1,) * (x.ndim - 2)
    mean_, var_, scale_, bias_ = (t.reshape(1, *t.shape, *spatial) for t in (mean, var, scale, bias))
    w = posterior_naive(x, tau, mean, var, eps, density_scale)
    standardized = (x.unsqueeze(1) - mean_) / (var_ + eps).sqrt()
    return (w.unsqueeze(2) * (scale_ * standardized + bias_)).sum(1)


def group_moments(x: Tensor, groups: Tensor, num_groups: int) -> Moments:
    """Eq. (17) and (18): moments of the images of each group; ``groups`` is int64 (B,), values 0..num_groups-1.

    Made of the images' own moments: the variance of a group is the mean of its images' variances plus the variance of
    their means. Carries no gradient: that of the split path is ``torch.ops.cbn.split_normalize``'s.
    """
    return Moments(*torch.ops.cbn.group_moments(x.detach(), groups, num_groups))
