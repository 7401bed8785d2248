"""What is done with a training batch between its pixels and its tables: three steps, one interface.

Each step is a pass or two over the pixels (:mod:`cbn_deploy.kernels.training_passes`) and arithmetic on (M, D) tables
around them. Here that arithmetic is plain torch operations, over any implementation of the passes: the reference. On
CUDA it has kernels of its own (:mod:`cbn_deploy.kernels.triton.training_tables`), because there a launch costs more
than the numbers. Notation as in the passes: pixels (B, D, P), posteriors w (B, M, P), c = x - centre; tables are of the
working type.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from cbn_deploy.kernels import portable
from cbn_deploy.kernels.moment_gradients import moment_gradients, moments_of_all_ranks, table_gradients
from cbn_deploy.kernels.training_passes import GradientTables

__all__ = ["Gradients", "NormalizerTables", "Statistics", "TorchTables", "TrainingSteps", "logit_tables"]


class Statistics(NamedTuple):
    """w (B, M, P); quadratic, linear (M, D); mass (M,); mean, var (M, D): see ``mixture_statistics``."""

    w: Tensor
    quadratic: Tensor
    linear: Tensor
    mass: Tensor
    mean: Tensor
    var: Tensor


class NormalizerTables(NamedTuple):
    """What ``mixture_normalize`` is given with x and the posterior: centre (D,), inverse_mass (M,), the rest (M, D)."""

    centre: Tensor
    quadratic: Tensor
    linear: Tensor
    mean: Tensor
    var: Tensor
    inverse_mass: Tensor
    scale: Tensor
    bias: Tensor


class Gradients(NamedTuple):
    """Of x, like the pixels, and of scale and bias (M, D)."""

    x: Tensor
    scale: Tensor
    bias: Tensor


class TrainingSteps(Protocol):
    """An implementation of the steps: an object, or a module of functions."""

    def statistics(
        self,
        pixels: Tensor,
        centre: Tensor,
        tau: Tensor,
        mean: Tensor,
        var: Tensor,
        epsilon: float,
        density_scale: float,
    ) -> Statistics:
        """E-step and M-step about ``centre`` (D,), from tau (M,), mean and var (M, D)."""

    def normalize(self, pixels: Tensor, w: Tensor, tables: NormalizerTables, epsilon: float, out: Tensor) -> None:
        """Write y = sum_j w_j (scale_j (x - mean_j) / sqrt(var_j + eps) + bias_j) to ``out``."""

    def gradients(self, grad: Tensor, pixels: Tensor, w: Tensor, tables: NormalizerTables, epsilon: float) -> Gradients:
        """From the gradient of y, like the pixels."""


@dataclass(frozen=True)
class TorchTables:
    """The steps with their tables in plain torch operations.

    Attributes:
        passes: over the pixels.
        synchronized: the gradients of mean and var are summed over the ranks on the way back.
    """

    passes: ModuleType
    synchronized: bool = False

    def statistics(
        self,
        pixels: Tensor,
        centre: Tensor,
        tau: Tensor,
        mean: Tensor,
        var: Tensor,
        epsilon: float,
        density_scale: float,
    ) -> Statistics:
        """See :class:`TrainingSteps`."""
        tables = portable.density_tables(tau, mean, var, epsilon, centre)
        constant = tables.log_prior - (0.5 * density_scale) * tables.constant
        quadratic, linear = logit_tables(tables, density_scale)
        w, (mass, first, second) = self.passes.expectation(pixels, centre, quadratic, linear, constant)
        # An empty component has mass 0 and sums 0; dividing by the tiny floor gives 0 and not NaN.
        safe = mass.clamp_min(torch.finfo(mass.dtype).tiny ** 0.5)[:, None]
        shift = first / safe
        # Rounding can leave a constant channel a variance just below zero.
        batch_var = (second / safe - shift.square()).clamp_min(0.0)
        return Statistics(w, quadratic, linear, mass, centre + shift, batch_var)

    def normalize(self, pixels: Tensor, w: Tensor, tables: NormalizerTables, epsilon: float, out: Tensor) -> None:
        """See :class:`TrainingSteps`."""
        self.passes.combine(pixels, tables.centre, w, *_combination(tables, epsilon), out)

    def gradients(self, grad: Tensor, pixels: Tensor, w: Tensor, tables: NormalizerTables, epsilon: float) -> Gradients:
        """See :class:`TrainingSteps`."""
        shift = tables.mean - tables.centre
        through_gain, through_offset = self.passes.output_sums(grad, pixels, tables.centre, w)
        outer = table_gradients(through_gain, through_offset, shift, tables.var, tables.scale, epsilon)
        outer = moments_of_all_ranks(outer) if self.synchronized else outer
        moments = moment_gradients(outer, shift, tables.var, tables.inverse_mass)
        gradient_tables = GradientTables(
            *_combination(tables, epsilon), *moments, 2.0 * tables.quadratic, tables.linear
        )
        x = self.passes.input_gradient(grad, pixels, tables.centre, w, gradient_tables)
        return Gradients(x, outer.scale, through_offset)


def logit_tables(tables: portable.DensityTables, density_scale: float) -> tuple[Tensor, Tensor]:
    """Coefficients of c^2 and c in the logits, (M, D) each."""
    return (-0.5 * density_scale) * tables.quadratic, density_scale * tables.linear


def _combination(tables: NormalizerTables, epsilon: float) -> tuple[Tensor, Tensor]:
    return portable.combination_tables(tables.mean, tables.var, tables.scale, tables.bias, epsilon, tables.centre)
