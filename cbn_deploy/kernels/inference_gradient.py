"""Gradient of ``torch.ops.cbn.compound_batch_norm`` by x, scale and bias; the statistics are constants there.

The posterior is computed a second time on the way back, so that the way forward saves nothing but x.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cbn_deploy.kernels import portable
from cbn_deploy.kernels.torch_ops import compound_batch_norm, compound_batch_norm_posterior
from cbn_deploy.kernels.training import mixture_normalize_backward
from cbn_deploy.kernels.training_steps import logit_tables

__all__: list[str] = []


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    del output
    ctx.save_for_backward(*inputs[:6])
    ctx.policy = inputs[6:]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    if any(ctx.needs_input_grad[1:4]):
        raise NotImplementedError("compound_batch_norm has no gradient by tau, mean and var: detach them")
    x, tau, mean, var, scale, bias = ctx.saved_tensors
    epsilon, density_scale = ctx.policy
    _, posterior = compound_batch_norm_posterior(x, tau, mean, var, scale, bias, epsilon, density_scale)
    tau, mean, var = (table.to(posterior.dtype) for table in (tau, mean, var))
    centre = (tau[:, None] * mean).sum(0)
    logits = logit_tables(portable.density_tables(tau, mean, var, epsilon, centre), density_scale)
    constants = (mean, var, torch.zeros_like(tau), scale, bias, epsilon)
    grad_x, grad_scale, grad_bias = mixture_normalize_backward(grad, x, posterior, centre, *logits, *constants)
    return grad_x, None, None, None, grad_scale, grad_bias, None, None


compound_batch_norm.register_autograd(_backward, setup_context=_save_for_backward)
