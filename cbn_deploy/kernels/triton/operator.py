"""The frozen layer on CUDA tensors: tables, then the fused kernel. Two launches, no synchronisation."""

from __future__ import annotations

import math

import torch
import triton
from torch import Tensor

from cbn_deploy.kernels.memory_format import dense, empty_like_dense, is_channels_last
from cbn_deploy.kernels.triton.inference import forward_kernel
from cbn_deploy.kernels.triton.launch import ForwardLaunch, forward_launch, tables_size
from cbn_deploy.kernels.triton.start import MOST_PIXELS, start
from cbn_deploy.kernels.triton.tables import tables_kernel

__all__ = ["compound_batch_norm", "forward", "layer_tables"]


def layer_tables(
    tau: Tensor, mean: Tensor, var: Tensor, scale: Tensor, bias: Tensor, eps: float, density_scale: float
) -> Tensor:
    """The kernels' tables, float32, flat (:mod:`cbn_deploy.kernels.triton.tables`), from tau (M,) and (M, D) tables."""
    components, channels = mean.shape
    sources = [table.to(torch.float32).contiguous() for table in (tau, mean, var, scale, bias)]
    tables = sources[0].new_empty(tables_size(components, channels))
    block = min(1024, triton.next_power_of_2(channels))
    start(
        tables_kernel,
        (components,),
        *sources,
        channels,
        eps,
        density_scale,
        tables,
        warps=4,
        COMPONENTS=components,
        BLOCK=block,
    )
    return tables


def forward(
    x: Tensor,
    tables: Tensor,
    components: int,
    *,
    residual: Tensor | None = None,
    relu: bool = False,
    with_posterior: bool = False,
    launch: ForwardLaunch | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Normalise ``x`` (B, D, *spatial), float32, float16 or bfloat16, by ready tables.

    Args:
        x: dense in either memory format, else it is copied.
        tables: of :func:`layer_tables`.
        components: M.
        residual: like ``x``, added to the result.
        relu: max(0, .) at the end; NaN stays NaN.
        with_posterior: also return the posterior.
        launch: how to cut the work; by default :func:`forward_launch` decides.

    Returns:
        y like ``x``, and the posterior (B, M, *spatial) float32 or ``None``.
    """
    channels_last = is_channels_last(x)
    x, y = dense(x), empty_like_dense(x)
    if residual is not None and residual.stride() != x.stride():
        residual = empty_like_dense(x).copy_(residual)
    posterior = x.new_empty((x.shape[0], components, *x.shape[2:]), dtype=torch.float32) if with_posterior else None
    channels, pixels = x.shape[1], math.prod(x.shape[2:])
    pixel_count = x.shape[0] * pixels
    if pixel_count == 0:
        return y, posterior
    if pixel_count > MOST_PIXELS:
        raise ValueError(f"expected at most {MOST_PIXELS} pixels in a batch, got {pixel_count}")
    launch = launch or forward_launch(
        components=components,
        channels=channels,
        pixels=pixels,
        item_size=x.element_size(),
        channels_last=channels_last,
        pixel_count=pixel_count,
    )
    start(
        forward_kernel,
        (launch.programs(pixel_count),),
        x,
        residual,
        tables,
        pixel_count,
        channels,
        pixels,
        y,
        posterior,
        warps=launch.warps,
        COMPONENTS=components,
        CHANNELS_LAST=channels_last,
        RESIDUAL=residual is not None,
        RELU=relu,
        POSTERIOR=with_posterior,
        **launch.constants(),
    )
    return y, posterior


def compound_batch_norm(
    x: Tensor,
    tau: Tensor,
    mean: Tensor,
    var: Tensor,
    scale: Tensor,
    bias: Tensor,
    eps: float,
    density_scale: float,
    *,
    residual: Tensor | None = None,
    relu: bool = False,
    with_posterior: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """As :func:`cbn_deploy.kernels.portable.compound_batch_norm`, with the fused forms of docs/op.md."""
    tables = layer_tables(tau, mean, var, scale, bias, eps, density_scale)
    return forward(x, tables, len(tau), residual=residual, relu=relu, with_posterior=with_posterior)
