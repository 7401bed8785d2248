"""The inference form of the layer in plain torch operations: what every faster kernel must agree with.

Notation: B images, D channels, P pixels (the flattened spatial axes), M components.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "DensityTables",
    "combination_tables",
    "compound_batch_norm",
    "density_tables",
    "mixture_logits",
    "outside_autocast",
    "working_dtype",
]


class DensityTables(NamedTuple):
    """The Gaussians as coefficients of (x - centre)^2 and x - centre, so that log-densities are matrix products.

    Attributes:
        quadratic: (M, D) precision 1/(var+eps), less that of the mean variance.
        linear: (M, D) (mu - centre) / (var+eps), less its mean over the components.
        constant: (M,) sum_d [(mu-centre)^2 / (var+eps) + log(var+eps)], less its mean over the components.
        log_prior: (M,) log tau; -inf for a component with tau = 0, which then claims nothing.
    """

    quadratic: Tensor
    linear: Tensor
    constant: Tensor
    log_prior: Tensor


def working_dtype(x: Tensor) -> torch.dtype:
    """Densities are computed in float32, or in float64 for a float64 ``x``."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def density_tables(tau: Tensor, mean: Tensor, var: Tensor, eps: float, centre: Tensor) -> DensityTables:
    """Coefficients of the log-densities from tau (M,), mean and var (M, D), about ``centre`` (D,)."""
    # What all components share cancels in the softmax. It is taken out here, as a reference variance and as means over
    # the components: the difference of nearby variances is exact, so near-identical components stay accurate.
    reference = var.mean(0)
    shifted, floored = mean - centre, var + eps
    quadratic = (reference - var) / floored / (reference + eps)
    linear = shifted / floored
    constant = (linear * shifted + (floored / (reference + eps)).log()).sum(1)
    return DensityTables(quadratic, linear - linear.mean(0), constant - constant.mean(), tau.log())


def mixture_logits(values: Tensor, squares: Tensor, tables: DensityTables, density_scale: float) -> Tensor:
    """log tau_j + density_scale * log N(x; mu_j, var_j + eps), up to a constant of the pixel.

    ``values`` (B, D, P) is x - centre, ``squares`` its square; returns (B, M, P).
    """
    distance = tables.quadratic @ squares - 2.0 * (tables.linear @ values) + tables.constant[:, None]
    return tables.log_prior[:, None] - (0.5 * density_scale) * distance


def combination_tables(
    mean: Tensor, var: Tensor, scale: Tensor, bias: Tensor, eps: float, centre: Tensor
) -> tuple[Tensor, Tensor]:
    """A = scale / sqrt(var + eps) and B = bias - A (mu - centre), (M, D) each: y = (x - centre) (w^T A) + w^T B."""
    gain = scale * (var + eps).rsqrt()
    return gain, bias - gain * (mean - centre)


def compound_batch_norm(
    x: Tensor,
    tau: Tensor,
    mean: Tensor,
    var: Tensor,
    scale: Tensor,
    bias: Tensor,
    eps: float,
    density_scale: float,
) -> tuple[Tensor, Tensor]:
    """Eq. (8) and (16) with frozen statistics, without the (B, M, D, H, W) tensor.

    Args:
        x: (B, D, *spatial), any floating dtype.
        tau: (M,) priors.
        mean: (M, D).
        var: (M, D).
        scale: (M, D).
        bias: (M, D).
        eps: added to the variances, in density and normaliser alike.
        density_scale: factor s of the log-density.

    Returns:
        y (B, D, *spatial) of ``x``'s dtype, and the posterior (B, M, *spatial) in float32 (float64 for float64 ``x``).
    """
    dtype = working_dtype(x)
    tau, mean, var, scale, bias = (t.to(dtype) for t in (tau, mean, var, scale, bias))
    centre = (tau[:, None] * mean).sum(0)
    spatial = x.shape[2:]
    values = x.to(dtype).reshape(x.shape[0], x.shape[1], math.prod(spatial)) - centre[:, None]
    logits = mixture_logits(values, values.square(), density_tables(tau, mean, var, eps, centre), density_scale)
    posterior = torch.softmax(logits, dim=1)
    gain, offset = combination_tables(mean, var, scale, bias, eps, centre)
    # Shaped before the last operation: torch forbids to write (an in-place ReLU) into views that operators return.
    y = torch.addcmul(*(t.reshape(x.shape) for t in (offset.t() @ posterior, values, gain.t() @ posterior)))
    return y.to(x.dtype), posterior.reshape(x.shape[0], len(tau), *spatial)


def outside_autocast(
    x: Tensor,
    tau: Tensor,
    mean: Tensor,
    var: Tensor,
    scale: Tensor,
    bias: Tensor,
    eps: float,
    density_scale: float,
) -> tuple[Tensor, Tensor]:
    """:func:`compound_batch_norm` with float32 products under autocast, too, which would make them half precision."""
    with torch.autocast(x.device.type, enabled=False):
        return compound_batch_norm(x, tau, mean, var, scale, bias, eps, density_scale)
