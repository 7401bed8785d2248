"""``torch.ops.cbn.group_moments`` and ``split_normalize``: a training batch through the split path, and back.

    mass, mean, var = torch.ops.cbn.group_moments(x, groups, M)  # (M,), (M, D), (M, D); carries no gradient
    y = torch.ops.cbn.split_normalize(x, groups, ...)            # carries all of it, also through the groups' moments

Saved for the way back are x and tables. The passes run in the native library where it is installed and can
(:mod:`cbn_deploy.kernels.native_split`), on CUDA in Triton (:mod:`cbn_deploy.kernels.cuda`), else in plain torch
operations (:mod:`cbn_deploy.kernels.split_passes`). All compute in float32 at least. The Triton passes read and write x
as it is stored, also in half precision and channels last; for the others it is converted first.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cbn_deploy.kernels import cuda, native_split, portable, split_groups, split_passes
from cbn_deploy.kernels.memory_format import dense, empty_like_dense, empty_output, stored_like

__all__ = ["group_moments", "split_normalize"]


@torch.library.custom_op("cbn::group_moments", mutates_args=())
def group_moments(x: Tensor, groups: Tensor, num_groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """Eq. (17) and (18): number of pixels, mean and biased variance of the images of each group.

    Args:
        x: (B, D, *spatial), any floating dtype.
        groups: (B,) int64, 0 .. num_groups-1.
        num_groups: M.

    Returns:
        mass (M,), mean and var (M, D), float32, or float64 for float64 x; an empty group's are 0.
    """
    triton = cuda.split_passes(x, num_groups)
    tables = split_groups if triton is None else triton
    mean, var = _moments_of_images(x, num_groups)
    found: tuple[Tensor, Tensor, Tensor] = tables.group_moments(mean, var, groups, math.prod(x.shape[2:]), num_groups)
    return found


@group_moments.register_fake
def _(x: Tensor, groups: Tensor, num_groups: int) -> tuple[Tensor, Tensor, Tensor]:
    del groups
    dtype, table = portable.working_dtype(x), (num_groups, x.shape[1])
    mass, mean, var = (torch.empty(shape, dtype=dtype, device=x.device) for shape in (table[:1], table, table))
    return mass, mean, var


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
    mean, var, scale, bias = (table.to(portable.working_dtype(x)) for table in (mean, var, scale, bias))
    triton = cuda.split_passes(x, len(scale))
    if triton is not None:
        y = empty_like_dense(x)
        triton.normalize(_flat(dense(x)), groups, mean, var, scale, bias, epsilon, _flat(y))
        return y
    planes = _planes(x)
    gain = scale * (var + epsilon).rsqrt()
    centre, slope, offset = (_of_planes(table, groups) for table in (mean, gain, bias))
    # Not a view of what the pass returns: torch forbids to write (an in-place ReLU) into views from operators.
    y = torch.empty(x.shape, dtype=planes.dtype, device=x.device)
    _passes(planes).affine(planes, centre, slope, offset, y.view_as(planes), None, None)
    return stored_like(x, y) if x.is_cuda else y.to(x.dtype)


@split_normalize.register_fake
def _(x: Tensor, *constants: object) -> Tensor:
    del constants
    return empty_output(x)


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
    mean, var, working_scale = (table.to(portable.working_dtype(x)) for table in (mean, var, scale))
    constants = _Constants(groups, var, inverse_mass, working_scale, epsilon)
    triton = cuda.split_passes(x, len(scale))
    if triton is not None:
        grad_x, found = _gradients_in_triton(triton, grad, x, mean, constants, synchronized)
        return grad_x, found.scale.to(scale.dtype), found.bias.to(scale.dtype)
    planes = _planes(x)
    g = _planes(grad).to(planes.dtype)
    passes, centre = _passes(planes), _of_planes(mean, groups)
    products, sums = (part.reshape(x.shape[:2]) for part in passes.gradient_sums(g, planes, centre))
    found = split_groups.group_gradients(products, sums, *constants, synchronized)
    slope, offset, gain = (_of_planes(t, groups) for t in (2.0 * found.curvature, found.slope, found.gain))
    grad_x = torch.empty_like(planes)
    passes.affine(planes, centre, slope, offset, grad_x, g, gain)
    result = grad_x.reshape(x.shape)
    result = stored_like(x, result) if x.is_cuda else result.to(x.dtype)
    return result, found.scale.to(scale.dtype), found.bias.to(scale.dtype)


@split_normalize_backward.register_fake
def _(grad: Tensor, x: Tensor, *constants: Any) -> tuple[Tensor, Tensor, Tensor]:
    del grad
    scale = constants[4]
    return empty_output(x), torch.empty_like(scale), torch.empty_like(scale)


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


class _Constants(NamedTuple):
    """What the groups' gradients take beside the sums."""

    groups: Tensor
    var: Tensor
    inverse_mass: Tensor
    scale: Tensor
    epsilon: float


def _gradients_in_triton(
    triton: ModuleType, grad: Tensor, x: Tensor, mean: Tensor, constants: _Constants, synchronized: bool
) -> tuple[Tensor, split_groups.GroupGradients]:
    pixels, g = _flat(dense(x)), _flat(stored_like(x, grad))
    products, sums = triton.gradient_sums(g, pixels, constants.groups, mean)
    if synchronized:
        # The ranks exchange what lies between their sums and the rest: one kernel cannot do both.
        found = split_groups.group_gradients(products, sums, *constants, synchronized)
    else:
        found = triton.group_gradients(products, sums, *constants)
    grad_x = empty_like_dense(x)
    triton.input_gradient(g, pixels, constants.groups, mean, found, _flat(grad_x))
    return grad_x, found


def _moments_of_images(x: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    """(B, D) each: mean and biased variance of every channel of every image, float32, or float64 for float64 x."""
    triton = cuda.split_passes(x, num_groups)
    if triton is not None:
        found: tuple[Tensor, Tensor] = triton.moments(_flat(dense(x)))
        return found
    planes = _planes(x)
    mean, var = _passes(planes).moments(planes)
    return mean.reshape(x.shape[:2]), var.reshape(x.shape[:2])


def _of_planes(table: Tensor, groups: Tensor) -> Tensor:
    """(M, D) -> (B D,): every plane's entry."""
    return table[groups].reshape(-1)


def _planes(x: Tensor) -> Tensor:
    """(B D, P), contiguous, float32 at least."""
    return x.to(portable.working_dtype(x)).reshape(x.shape[0] * x.shape[1], math.prod(x.shape[2:])).contiguous()


def _flat(x: Tensor) -> Tensor:
    """(B, D, P), a view of a dense tensor."""
    return x.reshape(x.shape[0], x.shape[1], math.prod(x.shape[2:]))


def _passes(planes: Tensor) -> ModuleType:
    return native_split if native_split.suits(planes) else split_passes
