"""The inference form of the layer in plain torch operations: what every faster kernel must agree with.

Notation: B images, D channels, P pixels (the flattened spatial axes), M components.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["InferenceTables", "compound_batch_norm", "inference_tables", "mixture_logits", "working_dtype"]


class InferenceTables(NamedTuple):
    """The layer's parameters, rearranged so that a pixel costs four small matrix products.

    Attributes:
        centre: (D,) shared centre m0 = sum_j tau_j mu_j.
        quadratic: (M, D) precision 1/(var+eps), less its mean over the components.
        linear: (M, D) precision * (mu - m0), less its mean over the components.
        constant: (M,) sum_d [precision (mu-m0)^2 + log(var+eps)], less its mean over the components.
        log_prior: (M,) log tau; -inf for a component with tau = 0, which then claims nothing.
        gain: (M, D) A = scale / sqrt(var+eps).
        offset: (M, D) B = bias - A (mu - m0).
    """

    centre: Tensor
    quadratic: Tensor
    linear: Tensor
    constant: Tensor
    log_prior: Tensor
    gain: Tensor
    offset: Tensor


def working_dtype(x: Tensor) -> torch.dtype:
    """Densities are computed in float32, or in float64 for a float64 ``x``."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def inference_tables(
    tau: Tensor, mean: Tensor, var: Tensor, scale: Tensor, bias: Tensor, eps: float
) -> InferenceTables:
    """Precompute :class:`InferenceTables` from tau (M,) and mean, var, scale, bias (M, D)."""
    centre = (tau[:, None] * mean).sum(0)
    shifted = mean - centre
    floored = var + eps
    precision = floored.reciprocal()
    linear = precision * shifted
    constant = (linear * shifted + floored.log()).sum(1)
    gain = scale * floored.rsqrt()
    # What all components share cancels in the softmax; removing it here keeps near-identical components accurate.
    return InferenceTables(
        centre=centre,
        quadratic=precision - precision.mean(0),
        linear=linear - linear.mean(0),
        constant=constant - constant.mean(),
        log_prior=tau.log(),
        gain=gain,
        offset=bias - gain * shifted,
    )


def mixture_logits(centred_BDP: Tensor, tables: InferenceTables, density_scale: float) -> Tensor:
    """log tau_j + density_scale * log N(x; mu_j, var_j+eps) up to a constant of the pixel: (B, D, P) -> (B, M, P)."""
    distance = tables.quadratic @ centred_BDP.square() - 2.0 * (tables.linear @ centred_BDP) + tables.constant[:, None]
    return tables.log_prior[:, None] - (0.5 * density_scale) * distance


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
        mean: (M, D), var: (M, D), scale: (M, D), bias: (M, D).
        eps: added to the variances, in density and normaliser alike.
        density_scale: factor s of the log-density.

    Returns:
        y (B, D, *spatial) of ``x``'s dtype, and the posterior (B, M, *spatial) in float32 (float64 for float64 ``x``).
    """
    dtype = working_dtype(x)
    tau, mean, var, scale, bias = (t.to(dtype) for t in (tau, mean, var, scale, bias))
    tables = inference_tables(tau, mean, var, scale, bias, eps)
    batch, channels, components = x.shape[0], x.shape[1], tau.shape[0]
    spatial = x.shape[2:]
    centred = x.to(dtype).reshape(batch, channels, math.prod(spatial)) - tables.centre[:, None]
    posterior = torch.softmax(mixture_logits(centred, tables, density_scale), dim=1)
    y = centred * (tables.gain.t() @ posterior) + tables.offset.t() @ posterior
    return y.reshape(x.shape).to(x.dtype), posterior.reshape(batch, components, *spatial)
