"""The paper's equations as pure functions of tensors.

Notation: B images, D channels, H x W pixels, M components, N = B H W; x is (B, D, *spatial), statistics and affine
tables are (M, D), priors and masses are (M,). The efficient forms work on P = H W flattened pixels: posteriors w are
(B, M, P). Densities are computed in float32, or in float64 for a float64 x.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from cbn_deploy.kernels import portable

__all__ = [
    "CentredPixels",
    "Moments",
    "batch_moments",
    "centred_pixels",
    "compound_batch_norm_naive",
    "compound_normalize",
    "gaussian_log_density",
    "group_moments",
    "moving_average",
    "posterior",
    "posterior_naive",
    "split_normalize",
    "weighted_moments",
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


def batch_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Eq. (1) and (2): per-channel mean and biased variance over all pixels, (D,) each."""
    dims = [0, *range(2, x.ndim)]
    mean = x.mean(dims)
    var = x.var(dims, correction=0)
    return mean, var


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


class CentredPixels(NamedTuple):
    """A batch as the equations below read it: flattened, about a centre, with its squares. Made once, used by all.

    Attributes:
        centre: (D,) batch mean per channel, a constant: it only keeps the sums small, so it carries no gradient.
        values: (B, D, P) x - centre.
        squares: (B, D, P) values squared.
        shape: shape of x.
    """

    centre: Tensor
    values: Tensor
    squares: Tensor
    shape: torch.Size


def centred_pixels(x: Tensor, centre: Tensor | None = None) -> CentredPixels:
    """Flatten ``x`` (B, D, *spatial) about ``centre`` (D,), by default its own mean; float32 at least."""
    x_BDP = (x.flatten(2) if x.ndim > 2 else x.unsqueeze(2)).to(portable.working_dtype(x))
    centre = x_BDP.detach().mean((0, 2)) if centre is None else centre
    values = x_BDP - centre[:, None]
    return CentredPixels(centre, values, values.square(), x.shape)


def posterior(
    pixels: CentredPixels, tau: Tensor, mean: Tensor, var: Tensor, eps: float, density_scale: float = 1.0
) -> Tensor:
    """Eq. (8) by two small matrix products: (B, M, P)."""
    tables = portable.density_tables(tau, mean, var, eps, pixels.centre)
    return torch.softmax(portable.mixture_logits(pixels.values, pixels.squares, tables, density_scale), dim=1)


def weighted_moments(pixels: CentredPixels, w: Tensor) -> Moments:
    """M-step, Eq. (10)-(12): moments under the posteriors ``w`` (B, M, P); tau^c = mass / N.

    Eq. (12) prints mu_j, Algorithm 2 the batch mean; the batch mean is what makes it a variance, and is used here.
    """
    first = torch.bmm(w, pixels.values.transpose(1, 2)).sum(0)
    second = torch.bmm(w, pixels.squares.transpose(1, 2)).sum(0)
    return _moments(w.sum((0, 2)), first, second, pixels.centre)


def group_moments(x: Tensor, groups: Tensor, num_groups: int) -> Moments:
    """Eq. (17) and (18): moments of the images of each group; ``groups`` is int64 (B,), values 0..num_groups-1."""
    pixels = centred_pixels(x)
    members_MB = F.one_hot(groups, num_groups).to(pixels.values.dtype).t()
    mass = members_MB.sum(1) * pixels.values.shape[2]
    return _moments(mass, members_MB @ pixels.values.sum(2), members_MB @ pixels.squares.sum(2), pixels.centre)


def _moments(mass: Tensor, first: Tensor, second: Tensor, centre: Tensor) -> Moments:
    # An empty component has mass 0 and sums 0; dividing by the tiny floor gives 0 and not NaN.
    safe = mass.clamp_min(torch.finfo(mass.dtype).tiny ** 0.5)[:, None]
    shift = first / safe
    # Rounding can leave a constant channel a variance just below zero.
    var = (second / safe - shift.square()).clamp_min(0.0)
    return Moments(mass, centre + shift, var)


def compound_normalize(
    pixels: CentredPixels, w: Tensor, mean: Tensor, var: Tensor, scale: Tensor, bias: Tensor, eps: float
) -> Tensor:
    """Eq. (7) and (16) for given posteriors (B, M, P): sum_j w_j (scale_j (x - mu_j) / sqrt(var_j + eps) + bias_j).

    Efficient form: (x - m0) * (w^T A) + w^T B with A = scale / sqrt(var + eps), B = bias - A (mu - m0).
    """
    gain, offset = portable.combination_tables(mean, var, scale, bias, eps, pixels.centre)
    return torch.addcmul(offset.t() @ w, pixels.values, gain.t() @ w).reshape(pixels.shape)


def split_normalize(
    x: Tensor, groups: Tensor, mean: Tensor, var: Tensor, scale: Tensor, bias: Tensor, eps: float
) -> Tensor:
    """Algorithm 3, lines 7-8: every image by the Gaussian of its class group; ``groups`` is int64 (B,)."""
    shape = (x.shape[0], x.shape[1], *(1,) * (x.ndim - 2))
    gain = scale * (var + eps).rsqrt()
    return (x - mean[groups].reshape(shape)) * gain[groups].reshape(shape) + bias[groups].reshape(shape)
