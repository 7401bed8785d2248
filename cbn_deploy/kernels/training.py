"""``torch.ops.cbn.mixture_statistics`` and ``mixture_normalize``: a training batch through the layer, and back.

One EM step, what a reading of the paper makes of it, then the normalisation:

    posterior, centre, quadratic, linear, mass, mean, var = torch.ops.cbn.mixture_statistics(x, tau, ...)
    y = torch.ops.cbn.mixture_normalize(x, posterior, centre, quadratic, linear, ...)

The first carries no gradient, the second all of it: its gradient with respect to x knows that posterior, mean and var
were made from x, so that the whole way back is two passes over the pixels. Saved for it are x, the posterior and
tables. Second derivatives are not implemented: asking for them raises torch's "no autograd formula was registered".

The passes run in the native library where it is installed and can (:mod:`cbn_deploy.kernels.native_training`), on CUDA
in Triton (:mod:`cbn_deploy.kernels.cuda`), else in plain torch operations
(:mod:`cbn_deploy.kernels.training_passes`). All compute in float32 at least. The Triton passes read and write x as it
is stored, also in half precision and channels last; for the others it is converted first.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from cbn_deploy.kernels import cuda, native_training, portable, training_passes
from cbn_deploy.kernels.memory_format import dense, empty_like_dense, empty_output, is_channels_last
from cbn_deploy.kernels.moment_gradients import moment_gradients, moments_of_all_ranks, table_gradients
from cbn_deploy.kernels.training_passes import GradientTables

__all__ = ["mixture_normalize", "mixture_statistics"]


@torch.library.custom_op("cbn::mixture_statistics", mutates_args=())
def mixture_statistics(
    x: Tensor, tau: Tensor, mean: Tensor, var: Tensor, epsilon: float, density_scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """E-step and M-step, Eq. (8) and (10)-(12).

    Eq. (12) prints mu_j, Algorithm 2 the batch mean; the batch mean is what makes it a variance, and is used here.

    Args:
        x: (B, D, *spatial), any floating dtype.
        tau: (M,) priors.
        mean: (M, D).
        var: (M, D).
        epsilon: added to the variances.
        density_scale: factor s of the log-density.

    Returns:
        - posterior: w (B, M, *spatial).
        - centre: (D,) batch mean per channel.
        - quadratic, linear: (M, D), such that the logit of w_j is a sum of (quadratic_jd c_d + linear_jd) c_d over the
          channels, but for what all components have in common; c = x - centre.
        - mass: (M,) sum_n w_nj.
        - mean, var: (M, D), mean and biased variance under w, 0 where the mass is 0.

        All float32, or float64 for float64 x.
    """
    with torch.autocast(x.device.type, enabled=False):
        pixels, passes = _prepared(x, len(tau))
        dtype = portable.working_dtype(x)
        tau, mean, var = (table.to(dtype) for table in (tau, mean, var))
        # A rank whose share of a batch is empty: any centre will do.
        centre = pixels.mean((0, 2), dtype=dtype) if pixels.numel() else tau.new_zeros(pixels.shape[1])
        tables = portable.density_tables(tau, mean, var, epsilon, centre)
        constant = tables.log_prior - (0.5 * density_scale) * tables.constant
        quadratic, linear = logit_tables(tables, density_scale)
        w, (mass, first, second) = passes.expectation(pixels, centre, quadratic, linear, constant)
        # An empty component has mass 0 and sums 0; dividing by the tiny floor gives 0 and not NaN.
        safe = mass.clamp_min(torch.finfo(mass.dtype).tiny ** 0.5)[:, None]
        shift = first / safe
        # Rounding can leave a constant channel a variance just below zero.
        batch_var = (second / safe - shift.square()).clamp_min(0.0)
    posterior = w.reshape(len(x), len(tau), *x.shape[2:])
    return posterior, centre, quadratic, linear, mass, centre + shift, batch_var


@mixture_statistics.register_fake
def _(
    x: Tensor, tau: Tensor, mean: Tensor, var: Tensor, epsilon: float, density_scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    del var, epsilon, density_scale

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=portable.working_dtype(x), device=x.device)

    table = mean.shape
    posterior, centre = empty(len(x), len(tau), *x.shape[2:]), empty(table[1])
    return posterior, centre, empty(*table), empty(*table), empty(len(tau)), empty(*table), empty(*table)


@torch.library.custom_op("cbn::mixture_normalize", mutates_args=())
def mixture_normalize(
    x: Tensor,
    posterior: Tensor,
    centre: Tensor,
    quadratic: Tensor,
    linear: Tensor,
    mean: Tensor,
    var: Tensor,
    inverse_mass: Tensor,
    scale: Tensor,
    bias: Tensor,
    epsilon: float,
    synchronized: bool = False,
) -> Tensor:
    """Eq. (7) and (16): y = sum_j w_j (scale_j (x - mean_j) / sqrt(var_j + eps) + bias_j).

    Differentiable with respect to x, scale and bias; to x also through the posterior and the batch's moments.

    Args:
        x: (B, D, *spatial), any floating dtype.
        posterior: (B, M, *spatial), from :func:`mixture_statistics` of this x.
        centre: (D,) any point near the pixels: it keeps the sums small.
        quadratic: (M, D), of :func:`mixture_statistics`; 0 here and in ``linear`` detaches the posterior.
        linear: (M, D), likewise.
        mean: (M, D), what normalises.
        var: (M, D), likewise.
        inverse_mass: (M,) 1 / mass for a component whose ``mean`` and ``var`` are this batch's moments, so that x
            receives gradient through them; 0 for one where they are constants.
        scale: (M, D).
        bias: (M, D).
        epsilon: added to the variances.
        synchronized: ``mean``, ``var`` and ``inverse_mass`` are those of all ranks' pixels: the way back sums the
            gradients of mean and var over the ranks.

    Returns:
        (B, D, *spatial) of x's dtype.
    """
    del quadratic, linear, inverse_mass, synchronized
    with torch.autocast(x.device.type, enabled=False):
        pixels, passes = _prepared(x, len(scale))
        mean, var, scale, bias = (table.to(portable.working_dtype(x)) for table in (mean, var, scale, bias))
        gain, offset = portable.combination_tables(mean, var, scale, bias, epsilon, centre)
        # Not a view of what the pass returns: torch forbids to write (an in-place ReLU) into views from operators.
        y = empty_output(x, pixels.dtype)
        passes.combine(pixels, centre, _flat(posterior).contiguous(), gain, offset, y.view_as(pixels))
    return y.to(x.dtype)


@mixture_normalize.register_fake
def _(x: Tensor, *constants: object) -> Tensor:
    del constants
    return empty_output(x)


@torch.library.custom_op("cbn::mixture_normalize_backward", mutates_args=())
def mixture_normalize_backward(
    grad: Tensor,
    x: Tensor,
    posterior: Tensor,
    centre: Tensor,
    quadratic: Tensor,
    linear: Tensor,
    mean: Tensor,
    var: Tensor,
    inverse_mass: Tensor,
    scale: Tensor,
    bias: Tensor,
    epsilon: float,
    synchronized: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, scale and bias from that of :func:`mixture_normalize`'s y."""
    with torch.autocast(x.device.type, enabled=False):
        pixels, passes = _prepared(x, len(scale))
        g, w = _stored_like(pixels, grad), _flat(posterior).contiguous()
        mean, var, *affine = (table.to(portable.working_dtype(x)) for table in (mean, var, scale, bias))
        shift = mean - centre
        through_gain, through_offset = passes.output_sums(g, pixels, centre, w)
        outer = table_gradients(through_gain, through_offset, shift, var, affine[0], epsilon)
        outer = moments_of_all_ranks(outer) if synchronized else outer
        moments = moment_gradients(outer, shift, var, inverse_mass)
        gain, offset = portable.combination_tables(mean, var, affine[0], affine[1], epsilon, centre)
        grad_tables = GradientTables(gain, offset, *moments, 2.0 * quadratic, linear)
        grad_x = passes.input_gradient(g, pixels, centre, w, grad_tables).reshape(x.shape).to(x.dtype)
        if x.is_cuda and is_channels_last(x) and not is_channels_last(grad_x):
            grad_x = empty_like_dense(x).copy_(grad_x)
    return grad_x, outer.scale.to(scale.dtype), through_offset.to(bias.dtype)


@mixture_normalize_backward.register_fake
def _(grad: Tensor, x: Tensor, *constants: Any) -> tuple[Tensor, Tensor, Tensor]:
    del grad
    scale, bias = constants[7], constants[8]
    return empty_output(x), torch.empty_like(scale), torch.empty_like(bias)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    del output
    ctx.save_for_backward(*inputs[:10])
    ctx.options = inputs[10:]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    if any(ctx.needs_input_grad[1:8]):
        raise NotImplementedError("mixture_normalize has gradients by x, scale and bias only: detach the rest")
    grad_x, grad_scale, grad_bias = mixture_normalize_backward(grad, *ctx.saved_tensors, *ctx.options)
    return grad_x, *[None] * 7, grad_scale, grad_bias, None, None


mixture_normalize.register_autograd(_backward, setup_context=_save_for_backward)


def logit_tables(tables: portable.DensityTables, density_scale: float) -> tuple[Tensor, Tensor]:
    """Coefficients of c^2 and c in the logits, (M, D) each."""
    return (-0.5 * density_scale) * tables.quadratic, density_scale * tables.linear


def _prepared(x: Tensor, components: int) -> tuple[Tensor, ModuleType]:
    """x as (B, D, P), in the type and memory format that the passes beside it take."""
    triton = cuda.training_passes(x, components)
    if triton is not None:
        return _flat(dense(x)), triton
    pixels = _flat(x.to(portable.working_dtype(x))).contiguous()
    return pixels, native_training if native_training.suits(pixels, components) else training_passes


def _flat(x: Tensor) -> Tensor:
    """(B, channels, P)."""
    return x.reshape(x.shape[0], x.shape[1], math.prod(x.shape[2:]))


def _stored_like(pixels: Tensor, values: Tensor) -> Tensor:
    """``values`` (B, D, *spatial) in shape, type and memory format of ``pixels``."""
    values = _flat(values.to(pixels.dtype))
    if not is_channels_last(pixels):
        return values.contiguous()
    return values if is_channels_last(values) else torch.empty_like(pixels).copy_(values)
