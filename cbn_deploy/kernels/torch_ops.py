"""``torch.ops.cbn.*``: the frozen layer as opaque operators, so that exporters and compilers see one node.

On the CPU they run in the native library where it is installed (:mod:`cbn_deploy.kernels.native`), on CUDA in Triton
(:mod:`cbn_deploy.kernels.cuda`); else, and for what these do not take, in plain torch operations
(:mod:`cbn_deploy.kernels.portable`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from cbn_deploy.kernels import cuda, native, portable
from cbn_deploy.kernels.memory_format import empty_output

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
    _check_shapes(x, tau, mean, var, scale, bias)
    arguments = (x, tau, mean, var, scale, bias, epsilon, density_scale)
    y, _ = native.compound_batch_norm(*arguments, with_posterior=False) or portable.outside_autocast(*arguments)
    return y


@compound_batch_norm.register_kernel("cuda")
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
    _check_shapes(x, tau, mean, var, scale, bias)
    y, _ = cuda.compound_batch_norm(x, tau, mean, var, scale, bias, epsilon, density_scale, with_posterior=False)
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
    return empty_output(x)


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
    _check_shapes(x, tau, mean, var, scale, bias)
    arguments = (x, tau, mean, var, scale, bias, epsilon, density_scale)
    found = native.compound_batch_norm(*arguments, with_posterior=True)
    if found is not None and found[1] is not None:
        return found[0], found[1]
    return portable.outside_autocast(*arguments)


@compound_batch_norm_posterior.register_kernel("cuda")
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
    _check_shapes(x, tau, mean, var, scale, bias)
    y, posterior = cuda.compound_batch_norm(x, tau, mean, var, scale, bias, epsilon, density_scale, with_posterior=True)
    assert posterior is not None  # noqa: S101 - asked for
    return y, posterior


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
        empty_output(x),
        torch.empty(shape, dtype=portable.working_dtype(x), device=x.device),
    )


def _check_shapes(x: Tensor, tau: Tensor, *tables: Tensor) -> None:
    """The native kernels see addresses only."""
    expected = (tau.numel(), x.shape[1]) if tau.ndim == 1 and x.ndim >= 2 else None
    if expected is None or any(tuple(table.shape) != expected for table in tables):
        raise ValueError(
            "expected x (B, D, *spatial), tau (M,) and tables (M, D), "
            f"got {tuple(x.shape)}, {tuple(tau.shape)} and {[tuple(table.shape) for table in tables]}"
        )
