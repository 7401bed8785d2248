"""``torch.ops.cbn.image_moments`` and ``split_normalize``: a training batch through the split path, and back.

    mean, var = torch.ops.cbn.image_moments(x)              # (B, D) each; carries no gradient
    y = torch.ops.cbn.split_normalize(x, groups, ...)       # carries all of it, also through the groups' moments

Saved for the way back are x and tables. The passes run in the native library where it is installed and can
(:mod:`cbn_deploy.kernels.native_split`), else in plain torch operations (:mod:`cbn_deploy.kernels.split_passes`); x of
half precision is computed in float32.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cbn_deploy.kernels import native_split, portable, split_passes
from cbn_deploy.kernels.moment_gradients import moment_gradients, moments_of_all_ranks, table_gradients

__all__ = ["image_moments", "split_normalize"]


@torch.library.custom_op("cbn::image_moments", mutates_args=())
def image_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of every channel of every image of x (B, D, *spatial).

    Returns:
        (B, D) each, float32, or float64 for float64 x.
    """
    planes = _planes(x)
    mean, var = _passes(planes).moments(planes)
    return mean.reshape(x.shape[:2]), var.reshape(x.shape[:2])


@image_moments.register_fake
def _(x: Tensor) -> tuple[Tensor, Tensor]:
    dtype = portable.working_dtype(x)
    mean, var = (torch.empty(x.shape[:2], dtype=dtype, device=x.device) for _ in range(2))
    return mean, var


@torch.library.custom_op("cbn::split_normalize", mutates_args=())
def split_normalize(
    x: Tensor,
    groups: Tensor,
    mean: Tensor,
    var: Tensor,
    inverse_mass: Tensor,
    scale: Tensor,
    bias: Tensor,
    epsilon: float,
    synchronized: bool = False,
) -> Tensor:
    """Algorithm 3, lines 7-8: y = scale_j (x - mean_j) / sqrt(var_j + eps) + bias_j, j the image's class group.

    Differentiable with respect to x, scale and bias; to x also through the groups' moments.

    Args:
        x: (B, D, *spatial), any floating dtype.
        groups: (B,) int64, 0 .. M-1.
        mean: (M, D), what normalises.
        var: (M, D), likewise.
        inverse_mass: (M,) 1 / number of pixels for a group whose ``mean`` and ``var`` are this batch's moments, so that
            x receives gradient through them; 0 for one where they are constants.
        scale: (M, D).
        bias: (M, D).
        epsilon: added to the variances.
        synchronized: ``mean``, ``var`` and ``inverse_mass`` are those of all ranks' pixels: the way back sums the
            gradients of mean and var over the ranks.

    Returns:
        (B, D, *spatial) of x's dtype.
    """
    del inverse_mass, synchronized
    planes = _planes(x)
    mean, var, scale, bias = (table.to(planes.dtype) for table in (mean, var, scale, bias))
    gain = scale * (var + epsilon).rsqrt()
    centre, slope, offset = (_of_planes(table, groups) for table in (mean, gain, bias))
    # Not a view of what the pass returns: torch forbids to write (an in-place ReLU) into views from operators.
    y = torch.empty(x.shape, dtype=planes.dtype, device=x.device)
    _passes(planes).affine(planes, centre, slope, offset, y.view_as(planes), None, None)
    return y.to(x.dtype)


@split_normalize.register_fake
def _(x: Tensor, *constants: object) -> Tensor:
    del constants
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


@torch.library.custom_op("cbn::split_normalize_backward", mutates_args=())
def split_normalize_backward(
    grad: Tensor,
    x: Tensor,
    groups: Tensor,
    mean: Tensor,
    var: Tensor,
    inverse_mass: Tensor,
    scale: Tensor,
    epsilon: float,
    synchronized: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, scale and bias from that of :func:`split_normalize`'s y."""
    planes = _planes(x)
    g = _planes(grad).to(planes.dtype)
    mean, var, working_scale = (table.to(planes.dtype) for table in (mean, var, scale))
    passes, centre = _passes(planes), _of_planes(mean, groups)
    products, sums = (part.reshape(x.shape[:2]) for part in passes.gradient_sums(g, planes, centre))
    through_gain, through_offset = (sum_of_groups(part, groups, len(scale)) for part in (products, sums))
    # The centre of a group's pixels is its mean.
    shift = torch.zeros_like(mean)
    outer = table_gradients(through_gain, through_offset, shift, var, working_scale, epsilon)
    outer = moments_of_all_ranks(outer) if synchronized else outer
    moments = moment_gradients(outer, shift, var, inverse_mass)
    gain = working_scale * (var + epsilon).rsqrt()
    slope, offset, plane_gain = (_of_planes(t, groups) for t in (2.0 * moments.curvature, moments.slope, gain))
    grad_x = torch.empty_like(planes)
    passes.affine(planes, centre, slope, offset, grad_x, g, plane_gain)
    return grad_x.reshape(x.shape).to(x.dtype), outer.scale.to(scale.dtype), through_offset.to(scale.dtype)


@split_normalize_backward.register_fake
def _(grad: Tensor, x: Tensor, *constants: Any) -> tuple[Tensor, Tensor, Tensor]:
    del grad
    scale = constants[4]
    return torch.empty(x.shape, dtype=x.dtype, device=x.device), torch.empty_like(scale), torch.empty_like(scale)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    del output
    ctx.save_for_backward(*inputs[:6])
    ctx.options = inputs[7:]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    if any(ctx.needs_input_grad[1:5]):
        raise NotImplementedError("split_normalize has gradients by x, scale and bias only: detach the rest")
    grad_x, grad_scale, grad_bias = split_normalize_backward(grad, *ctx.saved_tensors, *ctx.options)
    return grad_x, None, None, None, None, grad_scale, grad_bias, None, None


split_normalize.register_autograd(_backward, setup_context=_save_for_backward)


def sum_of_groups(values: Tensor, groups: Tensor, num_groups: int) -> Tensor:
    """(B, D) -> (M, D): the sum over the images of each group, in the same order every time."""
    members = F.one_hot(groups, num_groups).to(values.dtype)
    return (members.unsqueeze(2) * values.unsqueeze(1)).sum(0)


def _of_planes(table: Tensor, groups: Tensor) -> Tensor:
    """(M, D) -> (B D,): every plane's entry."""
    return table[groups].reshape(-1)


def _planes(x: Tensor) -> Tensor:
    """(B D, P), contiguous, float32 at least."""
    return x.to(portable.working_dtype(x)).reshape(x.shape[0] * x.shape[1], math.prod(x.shape[2:])).contiguous()


def _passes(planes: Tensor) -> ModuleType:
    return native_split if native_split.suits(planes) else split_passes
