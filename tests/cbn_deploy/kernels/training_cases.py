"""Problems for the training operators, the operators as a layer calls them, and the same from the paper's formula."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cbn_deploy.norm.functional import posterior_naive
from tests.cbn_deploy.kernels.native_cases import library

EPS = 1e-5
# As in cbn_deploy.norm.statistics: below it a component keeps its running statistics.
MIN_MASS = 2.0


class Problem(NamedTuple):
    """A batch and a layer: x (B, D, *spatial), tau (M,), mean, var, scale, bias (M, D), float64."""

    x: Tensor
    tau: Tensor
    mean: Tensor
    var: Tensor
    scale: Tensor
    bias: Tensor


Policy = tuple[float, float, bool]  # eps, density_scale, posterior_gradient
Step = Callable[[Problem, Policy, bool], Tensor]


def require_training_kernels() -> None:
    """The native library, which has them, or the test is skipped."""
    library()


def random_problem(seed: int, shape: tuple[int, ...], components: int) -> Problem:
    rng = np.random.default_rng(seed)
    tables = (components, shape[1])
    arrays = (
        rng.normal(0.5, 2.0, shape),
        rng.dirichlet(np.ones(components)),
        rng.normal(0.0, 1.5, tables),
        rng.uniform(0.2, 3.0, tables),
        rng.normal(1.0, 0.3, tables),
        rng.normal(0.0, 0.3, tables),
    )
    return Problem(*(torch.from_numpy(array) for array in arrays))


def operator_step(p: Problem, policy: Policy, batch_statistics: bool) -> Tensor:
    """y, normalised by the batch's moments, or by (mean, var) themselves."""
    eps, density_scale, posterior_gradient = policy
    w, centre, quadratic, linear, mass, mean, var = torch.ops.cbn.mixture_statistics(
        p.x.detach(), p.tau, p.mean, p.var, eps, density_scale
    )
    used = (mass >= MIN_MASS) & batch_statistics
    chosen_mean = torch.where(used[:, None], mean, p.mean.to(mean.dtype))
    chosen_var = torch.where(used[:, None], var, p.var.to(var.dtype))
    inverse_mass = torch.where(used, 1.0 / mass, 0.0)
    if not posterior_gradient:
        quadratic, linear = torch.zeros_like(quadratic), torch.zeros_like(linear)
    y: Tensor = torch.ops.cbn.mixture_normalize(
        p.x, w, centre, quadratic, linear, chosen_mean, chosen_var, inverse_mass, p.scale, p.bias, eps
    )
    return y


def naive_step(p: Problem, policy: Policy, batch_statistics: bool) -> Tensor:
    """The same with the (B, M, D, *spatial) tensor, every operation in autograd's sight."""
    eps, density_scale, posterior_gradient = policy
    w = posterior_naive(p.x, p.tau, p.mean, p.var, eps, density_scale)
    w = w if posterior_gradient else w.detach()
    x, w = p.x.unsqueeze(1), w.unsqueeze(2)
    pixels = [0, *range(3, x.ndim)]
    mass = w.sum([0, 2, *range(3, x.ndim)])
    safe = mass.clamp_min(1e-30)[:, None]
    mean = (w * x).sum(pixels) / safe
    var = (w * (x - _spread(mean, x)).square()).sum(pixels) / safe
    used = ((mass >= MIN_MASS) & batch_statistics)[:, None]
    mean, var = torch.where(used, mean, p.mean), torch.where(used, var, p.var)
    standardized = (x - _spread(mean, x)) / (_spread(var, x) + eps).sqrt()
    return (w * (_spread(p.scale, x) * standardized + _spread(p.bias, x))).sum(1)


def gradients(step: Step, p: Problem, policy: Policy, batch_statistics: bool) -> tuple[Tensor, ...]:
    """y, and the gradients of x, scale and bias of a loss that is no symmetric function of y."""
    inputs = [t.detach().clone().requires_grad_() for t in (p.x, p.scale, p.bias)]
    y = step(p._replace(x=inputs[0], scale=inputs[1], bias=inputs[2]), policy, batch_statistics)
    direction = torch.from_numpy(np.random.default_rng(0).normal(size=p.x.shape)).to(y.dtype)
    return y.detach(), *torch.autograd.grad((y * direction).sum() + y.square().sum() / 2, inputs)


def _spread(table: Tensor, x: Tensor) -> Tensor:
    """(M, D) -> (1, M, D, 1, ...)."""
    return table.reshape(1, *table.shape, *(1,) * (x.ndim - 3))
