"""``torch.ops.cbn.*``: the frozen layer as opaque operators, so that exporters and compilers see one node.

The CPU implementation is :mod:`cbn_deploy.kernels.portable`; faster kernels register on the same operators.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cbn_deploy.kernels import portable

__all__ = ["compound_batch_norm", "compound_batch_norm_posterior"]


@torch.library.custom_op("cbn::compound_batch_norm", mutates_args=())
def compound_batch_norm(
    x: Tensor,
    tau: Tensor,
    mean: Tensor,
    var: Tensor,
    scale: Tensor,
    bias: Tensor,
    epsilon: float,
    density_scale: float,
) -> Tensor:
    """See :func:`cbn_deploy.kernels.portable.compound_batch_norm`; returns y only."""
    y, _ = portable.compound_batch_norm(x, tau, mean, var, scale, bias, epsilon, density_scale)
    return y


@compound_batch_norm.register_fake
def _(
    x: Tensor,
    tau: Tensor,
    mean: Tensor,
    var: Tensor,
    scale: Tensor,
    bias: Tensor,
    epsilon: float,
    density_scale: float,
) -> Tensor:
    del tau, mean, var, scale, bias, epsilon, density_scale
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


@torch.library.custom_op("cbn::compound_batch_norm_posterior", mutates_args=())
def compound_batch_norm_posterior(
    x: Tensor,
    tau: Tensor,
    mean: Tensor,
    var: Tensor,
    scale: Tensor,
    bias: Tensor,
    epsilon: float,
    density_scale: float,
) -> tuple[Tensor, Tensor]:
    """See :func:`cbn_deploy.kernels.portable.compound_batch_norm`; returns y and the posterior."""
    y, posterior = portable.compound_batch_norm(x, tau, mean, var, scale, bias, epsilon, density_scale)
    return y, posterior.clone()


@compound_batch_norm_posterior.register_fake
def _(
    x: Tensor,
    tau: Tensor,
    mean: Tensor,
    var: Tensor,
    scale: Tensor,
    bias: Tensor,
    epsilon: float,
    density_scale: float,
) -> tuple[Tensor, Tensor]:
    del mean, var, scale, bias, epsilon, density_scale
    shape = (x.shape[0], tau.shape[0], *x.shape[2:])
    return (
        torch.empty(x.shape, dtype=x.dtype, device=x.device),
        torch.empty(shape, dtype=portable.working_dtype(x), device=x.device),
    )
