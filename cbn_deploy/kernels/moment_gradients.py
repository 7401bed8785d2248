"""Table arithmetic of the way back, shared by the compound and the split path: (M, D) tensors only.

With c = x - centre and shift = mean - centre, both paths compute y = sum_j w_j (A_j c + B_j), where
A = scale / sqrt(var + eps) and B = bias - A shift.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from cbn_deploy.kernels.all_reduce import all_reduced

__all__ = ["MomentGradients", "TableGradients", "moment_gradients", "moments_of_all_ranks", "table_gradients"]


class TableGradients(NamedTuple):
    """Gradients of scale, mean and var, (M, D) each; that of bias is the sum of w g."""

    scale: Tensor
    mean: Tensor
    var: Tensor


class MomentGradients(NamedTuple):
    """What w c^2, w c and w are worth: ``curvature`` (M, D), ``slope`` (M, D), ``constant`` (M,)."""

    curvature: Tensor
    slope: Tensor
    constant: Tensor


def table_gradients(
    through_gain: Tensor, through_offset: Tensor, shift: Tensor, var: Tensor, scale: Tensor, eps: float
) -> TableGradients:
    """From the sums over all pixels of w c g and of w g, where g is the gradient of y."""
    floored = var + eps
    inverse_deviation = floored.rsqrt()
    gain = through_gain - through_offset * shift
    return TableGradients(
        gain * inverse_deviation,
        -through_offset * scale * inverse_deviation,
        -0.5 * gain * scale * inverse_deviation / floored,
    )


def moments_of_all_ranks(gradients: TableGradients) -> TableGradients:
    """Where mean and var are moments of several ranks' pixels: their gradients, summed over the ranks.

    With x_r the pixels of rank r and L = sum_r L_r, each x_n of any rank receives dL/dmean_j dmean_j/dx_n, where
    dL/dmean_j = sum_r dL_r/dmean_j; likewise for var, as in torch's SyncBatchNorm. The gradient of scale stays this
    rank's own: summing parameters' gradients is the affair of whoever distributes the training.
    """
    mean, var = all_reduced(torch.stack([gradients.mean, gradients.var]))
    return gradients._replace(mean=mean, var=var)


def moment_gradients(gradients: TableGradients, shift: Tensor, var: Tensor, inverse_mass: Tensor) -> MomentGradients:
    """Through mean_j = centre + sum w c / mass and var_j = sum w (c - shift_j)^2 / mass."""
    share = inverse_mass[:, None]
    curvature = gradients.var * share
    slope = (gradients.mean - 2.0 * gradients.var * shift) * share
    constant = ((gradients.var * (shift.square() - var) - gradients.mean * shift) * share).sum(1)
    # 0, and not 0 times infinity, where the moments are constants.
    used = share != 0
    return MomentGradients(
        torch.where(used, curvature, 0.0), torch.where(used, slope, 0.0), torch.where(used[:, 0], constant, 0.0)
    )
