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
is stored, also in half precision and channels last; for the others it is converted first. Between the passes lies
arithmetic on tables (:mod:`cbn_deploy.kernels.training_steps`), on CUDA in kernels of its own.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor

from cbn_deploy.kernels import cuda, native_training, portable, training_passes
from cbn_deploy.kernels.memory_format import dense, empty_like_dense, empty_output, is_channels_last, stored_like
from cbn_deploy.kernels.training_steps import NormalizerTables, TorchTables, TrainingSteps

__all__ = ["mixture_normalize", "mixture_statistics"]

CENTRE_IMAGES = 16


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
        - centre: (D,) mean per channel: of the batch or, on CUDA, of its first images.
        - quadratic, linear: (M, D), such that the logit of w_j is a sum of (quadratic_jd c_d + linear_jd) c_d over the
          channels, but for what all components have in common; c = x - centre.
        - mass: (M,) sum_n w_nj.
        - mean, var: (M, D), mean and biased variance under w, 0 where the mass is 0.

        All float32, or float64 for float64 x.
    """
    with torch.autocast(x.device.type, enabled=False):
        pixels, steps = _prepared(x, len(tau))
        dtype = portable.working_dtype(x)
        tau, mean, var = (table.to(dtype) for table in (tau, mean, var))
        centre = _centre(pixels, dtype)
        w, *results = steps.statistics(pixels, centre, tau, mean, var, epsilon, density_scale)
    quadratic, linear, mass, batch_mean, batch_var = results
    return w.reshape(len(x), len(tau), *x.shape[2:]), centre, quadratic, linear, mass, batch_mean, batch_var


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
    del synchronized
    with torch.autocast(x.device.type, enabled=False):
        pixels, steps = _prepared(x, len(scale))
        tables = NormalizerTables(centre, quadratic, linear, mean, var, inverse_mass, scale, bias)
        # Not a view of what the pass returns: torch forbids to write (an in-place ReLU) into views from operators.
        y = empty_output(x, pixels.dtype)
        steps.normalize(pixels, _flat(posterior).contiguous(), _working(tables, x), epsilon, y.view_as(pixels))
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
        pixels, steps = _prepared(x, len(scale), synchronized)
        g, w = stored_like(pixels, _flat(grad)), _flat(posterior).contiguous()
        tables = NormalizerTables(centre, quadratic, linear, mean, var, inverse_mass, scale, bias)
        gradients = steps.gradients(g, pixels, w, _working(tables, x), epsilon)
        grad_x = gradients.x.reshape(x.shape).to(x.dtype)
        if x.is_cuda and is_channels_last(x) and not is_channels_last(grad_x):
            grad_x = empty_like_dense(x).copy_(grad_x)
    return grad_x, gradients.scale.to(scale.dtype), gradients.bias.to(bias.dtype)


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


def _centre(pixels: Tensor, dtype: torch.dtype) -> Tensor:
    """(D,) a point near the pixels (B, D, P). On CUDA a full mean would be another pass; a few images' is as near."""
    if pixels.numel() == 0:  # a rank whose share of a batch is empty: any centre will do
        return pixels.new_zeros(pixels.shape[1], dtype=dtype)
    return (pixels[:CENTRE_IMAGES] if pixels.is_cuda else pixels).mean((0, 2), dtype=dtype)


def _prepared(x: Tensor, components: int, synchronized: bool = False) -> tuple[Tensor, TrainingSteps]:
    """x as (B, D, P), in the type and memory format that the steps beside it take."""
    triton = cuda.training_passes(x, components)
    if triton is not None:
        tables = None if synchronized else cuda.training_tables()
        steps = TorchTables(triton, synchronized) if tables is None else cast(TrainingSteps, tables)
        return _flat(dense(x)), steps
    pixels = _flat(x.to(portable.working_dtype(x))).contiguous()
    passes = native_training if native_training.suits(pixels, components) else training_passes
    return pixels, TorchTables(passes, synchronized)


def _working(tables: NormalizerTables, x: Tensor) -> NormalizerTables:
    dtype = portable.working_dtype(x)
    return NormalizerTables(*(table.to(dtype) for table in tables))


def _flat(x: Tensor) -> Tensor:
    """(B, channels, P)."""
    return x.reshape(x.shape[0], x.shape[1], math.prod(x.shape[2:]))
