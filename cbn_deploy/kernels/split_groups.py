"""The split path's arithmetic on tables of images (B, D) and of groups (M, D), in plain torch operations."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from cbn_deploy.kernels.moment_gradients import moment_gradients, moments_of_all_ranks, table_gradients

__all__ = ["GroupGradients", "group_gradients", "group_moments"]


class GroupGradients(NamedTuple):
    """(M, D) each: the gradients of scale and bias, and g, (x - mean)^2 and x - mean's worth for the gradient of x.

    That is gain g + 2 curvature (x - mean) + slope.
    """

    scale: Tensor
    bias: Tensor
    gain: Tensor
    curvature: Tensor
    slope: Tensor


def group_moments(
    mean: Tensor, var: Tensor, groups: Tensor, pixels: int, num_groups: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Eq. (17) and (18) from the images' own moments (B, D).

    The variance of a group is the mean of its images' variances plus the variance of their means.

    Returns:
        mass (M,), the number of pixels, mean and biased variance (M, D); an empty group's are 0.
    """
    images = _sum_of_groups(torch.ones_like(mean[:, :1]), groups, num_groups)
    share = 1.0 / images.clamp_min(1.0)
    group_mean = share * _sum_of_groups(mean, groups, num_groups)
    group_var = share * _sum_of_groups(var + (mean - group_mean[groups]).square(), groups, num_groups)
    return images[:, 0] * pixels, group_mean, group_var


def group_gradients(
    products: Tensor,
    sums: Tensor,
    groups: Tensor,
    var: Tensor,
    inverse_mass: Tensor,
    scale: Tensor,
    epsilon: float,
    synchronized: bool = False,
) -> GroupGradients:
    """From the sums over every channel of every image of (x - mean) g and of g, (B, D) each.

    With ``synchronized``, the gradients of mean and var are summed over the ranks.
    """
    through_gain, through_offset = (_sum_of_groups(part, groups, len(scale)) for part in (products, sums))
    # The centre of a group's pixels is its mean.
    shift = torch.zeros_like(var)
    outer = table_gradients(through_gain, through_offset, shift, var, scale, epsilon)
    outer = moments_of_all_ranks(outer) if synchronized else outer
    moments = moment_gradients(outer, shift, var, inverse_mass)
    gain = scale * (var + epsilon).rsqrt()
    return GroupGradients(outer.scale, through_offset, gain, moments.curvature, moments.slope)


def _sum_of_groups(values: Tensor, groups: Tensor, num_groups: int) -> Tensor:
    """(B, D) -> (M, D): the sum over the images of each group, in the same order every time."""
    members = F.one_hot(groups, num_groups).to(values.dtype)
    return (members.unsqueeze(2) * values.unsqueeze(1)).sum(0)
