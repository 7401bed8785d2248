"""The split path's passes on CUDA tensors, with the groups' tables looked up inside them.

x and the gradient of y are (B, D, P) in float32, float16 or bfloat16, both with their pixels contiguous or both with
their channels; tables of images (B, D), those of groups (M, D), float32; groups (B,) int64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cbn_deploy.kernels.memory_format import is_channels_last
from cbn_deploy.kernels.split_groups import GroupGradients
from cbn_deploy.kernels.triton.split_kernels import (
    gradient_sums_kernel,
    group_gradients_kernel,
    group_moments_kernel,
    image_moments_kernel,
    split_gradient_kernel,
    split_normalize_kernel,
)
from cbn_deploy.kernels.triton.split_launch import SplitLaunch, split_launch
from cbn_deploy.kernels.triton.start import start

__all__ = ["gradient_sums", "group_gradients", "group_moments", "input_gradient", "moments", "normalize"]

# Of the kernels over tables: the images of a usual batch at once, and channels enough for one access of a warp.
TABLE_BLOCKS = {"BLOCK_B": 128, "BLOCK_D": 16}
TABLE_WARPS = 4


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of every channel of every image, (B, D) each."""
    launch = _launch(x, sums=True)
    images, channels, pixels = x.shape
    mean, var = (x.new_empty((images, channels), dtype=torch.float32) for _ in range(2))
    start(
        image_moments_kernel,
        (images * launch.chunks(channels),),
        x,
        channels,
        pixels,
        mean,
        var,
        LOOPS=launch.blocks(pixels) > 1,
        **launch.constants,
    )
    return mean, var


def group_moments(
    mean: Tensor, var: Tensor, groups: Tensor, pixels: int, num_groups: int
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`cbn_deploy.kernels.split_groups.group_moments`."""
    images, channels = mean.shape
    mass = mean.new_empty(num_groups)
    group_mean, group_var = (mean.new_empty((num_groups, channels)) for _ in range(2))
    start(
        group_moments_kernel,
        (_table_chunks(channels), num_groups),
        mean,
        var,
        groups.contiguous(),
        images,
        channels,
        pixels,
        mass,
        group_mean,
        group_var,
        **TABLE_BLOCKS,
        warps=TABLE_WARPS,
    )
    return mass, group_mean, group_var


def normalize(
    x: Tensor, groups: Tensor, mean: Tensor, var: Tensor, scale: Tensor, bias: Tensor, epsilon: float, out: Tensor
) -> None:
    """``out``, like x, = scale_j (x - mean_j) / sqrt(var_j + eps) + bias_j with j the image's group."""
    launch = _launch(x, sums=False)
    images, channels, pixels = x.shape
    start(
        split_normalize_kernel,
        (images * launch.chunks(channels) * launch.blocks(pixels),),
        x,
        *(table.contiguous() for table in (groups, mean, var, scale, bias)),
        epsilon,
        channels,
        pixels,
        out,
        **launch.constants,
    )


def gradient_sums(grad: Tensor, x: Tensor, groups: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over every channel of every image of (x - centre_j) g and of g, (B, D) each."""
    launch = _launch(x, sums=True)
    images, channels, pixels = x.shape
    products, sums = (x.new_empty((images, channels), dtype=torch.float32) for _ in range(2))
    start(
        gradient_sums_kernel,
        (images * launch.chunks(channels),),
        grad,
        x,
        groups.contiguous(),
        centre.contiguous(),
        channels,
        pixels,
        products,
        sums,
        LOOPS=launch.blocks(pixels) > 1,
        **launch.constants,
    )
    return products, sums


def group_gradients(
    products: Tensor, sums: Tensor, groups: Tensor, var: Tensor, inverse_mass: Tensor, scale: Tensor, epsilon: float
) -> GroupGradients:
    """As :func:`cbn_deploy.kernels.split_groups.group_gradients` on one rank."""
    images, channels = products.shape
    found = GroupGradients(*(torch.empty_like(scale, memory_format=torch.contiguous_format) for _ in range(5)))
    start(
        group_gradients_kernel,
        (_table_chunks(channels), len(scale)),
        products,
        sums,
        *(table.contiguous() for table in (groups, var, scale, inverse_mass)),
        epsilon,
        images,
        channels,
        *found,
        **TABLE_BLOCKS,
        warps=TABLE_WARPS,
    )
    return found


def input_gradient(
    grad: Tensor, x: Tensor, groups: Tensor, centre: Tensor, tables: GroupGradients, out: Tensor
) -> None:
    """``out``, like x, = gain_j g + 2 curvature_j (x - centre_j) + slope_j with j the image's group."""
    launch = _launch(x, sums=False)
    images, channels, pixels = x.shape
    start(
        split_gradient_kernel,
        (images * launch.chunks(channels) * launch.blocks(pixels),),
        grad,
        x,
        *(table.contiguous() for table in (groups, centre, tables.gain, tables.curvature, tables.slope)),
        channels,
        pixels,
        out,
        **launch.constants,
    )


def _launch(x: Tensor, *, sums: bool) -> SplitLaunch:
    return split_launch(
        channels=x.shape[1],
        pixels=x.shape[2],
        item_size=x.element_size(),
        channels_last=is_channels_last(x),
        sums=sums,
    )


def _table_chunks(channels: int) -> int:
    return -(-channels // TABLE_BLOCKS["BLOCK_D"])
