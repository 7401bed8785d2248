"""The four passes of a training step over the pixels, on CUDA tensors.

The interface and the notation are those of the plain torch passes, but for what is stored: x and the gradient of y are
(B, D, P) in float32, float16 or bfloat16, both with their pixels contiguous or both with their channels; posteriors w
(B, M, P), tables (M, D) or (M,), float32; c = x - centre. Sums over pixels are the same in every run: programs write
theirs side by side, and torch adds them, or, for who takes the parts, another kernel.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cbn_deploy.kernels.memory_format import is_channels_last
from cbn_deploy.kernels.triton.launch import TrainingLaunch, training_launch
from cbn_deploy.kernels.triton.start import MOST_PIXELS, start
from cbn_deploy.kernels.triton.training_kernels import (
    combine_kernel,
    expectation_kernel,
    input_gradient_kernel,
    weighted_sums_kernel,
)

__all__ = [
    "combine",
    "expectation",
    "expectation_parts",
    "input_gradient",
    "output_parts",
    "output_sums",
    "packed_input_gradient",
]


def expectation(
    x: Tensor, centre: Tensor, quadratic: Tensor, linear: Tensor, constant: Tensor
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """w = softmax_j( sum_d (quadratic_jd c_d + linear_jd) c_d + constant_j ), and its sums.

    Returns:
        w (B, M, P) float32, and the sums over all pixels: of w (M,), of w c (M, D) and of w c^2 (M, D).
    """
    w, masses, partial = expectation_parts(x, centre, quadratic, linear, constant)
    sums = partial.sum(0)
    return w, (masses.sum(0), sums[:, 0].contiguous(), sums[:, 1].contiguous())


def expectation_parts(
    x: Tensor, centre: Tensor, quadratic: Tensor, linear: Tensor, constant: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`expectation`, with the sums still to be added over the first axis.

    Returns:
        w (B, M, P) float32; the sums of w (parts, M); those of w c and w c^2 (other parts, M, 2, D).
    """
    launch, sizes = _cut(x, len(constant), sums=True)
    components, channels = quadratic.shape
    w = x.new_empty((x.shape[0], components, x.shape[2]), dtype=torch.float32)
    moments = launch.chunks == 1
    programs = launch.looping_programs(sizes[0])
    masses = w.new_empty((programs, components))
    partial = w.new_empty((programs, components, 2, channels)) if moments else None
    start(
        expectation_kernel,
        (programs,),
        x,
        *(table.contiguous() for table in (centre, quadratic, linear, constant)),
        *sizes,
        w,
        masses,
        partial,
        COMPONENTS=components,
        CHANNELS_LAST=is_channels_last(x),
        VECTOR=launch.vector,
        BLOCK_D=launch.block_channels,
        BLOCK_P=launch.block_pixels,
        CHUNKS=launch.chunks,
        FOLD=launch.fold,
        MOMENTS=moments,
        warps=launch.warps,
    )
    return w, masses, _weighted_sums(None, x, centre, w) if partial is None else partial


def combine(x: Tensor, centre: Tensor, w: Tensor, gain: Tensor, offset: Tensor, out: Tensor) -> None:
    """``out`` = y, y_d = c_d sum_j gain_jd w_j + sum_j offset_jd w_j."""
    launch, sizes = _cut(x, len(gain), by_channel=True)
    y = out if is_channels_last(out) == is_channels_last(x) else torch.empty_like(x)
    start(
        combine_kernel,
        (launch.programs(sizes[0]), launch.chunks),
        x,
        *(table.contiguous() for table in (centre, w, gain, offset)),
        *sizes,
        y,
        COMPONENTS=len(gain),
        CHANNELS_LAST=is_channels_last(x),
        VECTOR=launch.vector,
        BLOCK_D=launch.block_channels,
        BLOCK_P=launch.block_pixels,
        warps=launch.warps,
    )
    if y is not out:
        out.copy_(y)


def output_sums(grad: Tensor, x: Tensor, centre: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over all pixels of w c g and of w g, (M, D) each."""
    sums = output_parts(grad, x, centre, w).sum(0)
    return sums[:, 1].contiguous(), sums[:, 0].contiguous()


def output_parts(grad: Tensor, x: Tensor, centre: Tensor, w: Tensor) -> Tensor:
    """(parts, M, 2, D): the sums of w g and of w c g, to be added over the first axis."""
    return _weighted_sums(grad, x, centre, w)


def input_gradient(grad: Tensor, x: Tensor, centre: Tensor, w: Tensor, tables: Sequence[Tensor]) -> Tensor:
    """Gradient of x.

    Args:
        grad: of y, like x.
        x: (B, D, P).
        centre: (D,).
        w: (B, M, P).
        tables: gain, offset, curvature, slope (M, D), constant (M,), quadratic and linear (M, D).

    Returns:
        Like x, sum_j [ gain_jd w_j g_d + (2 curvature_jd w_j + quadratic_jd h_j) c_d + slope_jd w_j + linear_jd h_j ]
        with G_j = sum_d [ (gain_jd g_d + curvature_jd c_d + slope_jd) c_d + offset_jd g_d ] + constant_j and
        h_j = w_j (G_j - sum_k w_k G_k).
    """
    gain, offset, curvature, slope, constant, quadratic, linear = tables
    packed = torch.stack((gain, offset, curvature, slope, quadratic, linear), dim=1)
    return packed_input_gradient(grad, x, centre, w, packed, constant[:, None].contiguous())


def packed_input_gradient(
    grad: Tensor, x: Tensor, centre: Tensor, w: Tensor, packed: Tensor, constant: Tensor
) -> Tensor:
    """As :func:`input_gradient`, with the tables as the kernel reads them.

    Args:
        grad: of y, like x.
        x: (B, D, P).
        centre: (D,).
        w: (B, M, P).
        packed: (M, 6, D) gain, offset, curvature, slope, quadratic, linear.
        constant: (M, pieces), to be added over the pieces, whose number is a power of two.
    """
    launch, sizes = _cut(x, len(packed))
    result = torch.empty_like(x)
    start(
        input_gradient_kernel,
        (launch.programs(sizes[0]),),
        grad,
        x,
        centre.contiguous(),
        w,
        packed,
        constant,
        *sizes,
        result,
        COMPONENTS=len(packed),
        PIECES=constant.shape[1],
        CHANNELS_LAST=is_channels_last(x),
        VECTOR=launch.vector,
        BLOCK_D=launch.block_channels,
        BLOCK_P=launch.block_pixels,
        CHUNKS=launch.chunks,
        warps=launch.warps,
    )
    return result


def _weighted_sums(grad: Tensor | None, x: Tensor, centre: Tensor, w: Tensor) -> Tensor:
    """(parts, M, 2, D): the sums of w a and of w a c, a being the gradient, or c where there is none."""
    components = w.shape[1]
    launch, sizes = _cut(x, components, by_channel=True, sums=True)
    splits = launch.looping_programs(sizes[0])
    partial = w.new_empty((splits, components, 2, x.shape[1]))
    start(
        weighted_sums_kernel,
        (splits, launch.chunks),
        x if grad is None else grad,
        x,
        centre.contiguous(),
        w.contiguous(),
        *sizes,
        partial,
        COMPONENTS=components,
        CHANNELS_LAST=is_channels_last(x),
        VECTOR=launch.vector,
        BLOCK_D=launch.block_channels,
        BLOCK_P=launch.block_pixels,
        FOLD=launch.fold,
        GRADIENT=grad is not None,
        warps=launch.warps,
    )
    return partial


def _cut(
    x: Tensor, components: int, *, by_channel: bool = False, sums: bool = False
) -> tuple[TrainingLaunch, tuple[int, int, int]]:
    images, channels, pixels = x.shape
    if images * pixels > MOST_PIXELS:
        raise ValueError(f"expected at most {MOST_PIXELS} pixels in a batch, got {images * pixels}")
    launch = training_launch(
        components=components,
        channels=channels,
        pixels=pixels,
        item_size=x.element_size(),
        channels_last=is_channels_last(x),
        by_channel=by_channel,
        sums=sums,
    )
    return launch, (images * pixels, channels, pixels)
