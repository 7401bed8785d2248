"""The steps of a training batch on CUDA tensors with their table arithmetic in single kernels.

The interface of :class:`cbn_deploy.kernels.training_steps.TorchTables`, over the passes of
:mod:`cbn_deploy.kernels.triton.training`. Written in plain operations the same arithmetic on (M, D) numbers is a
hundred launches a layer and step, which take longer than the pixels of a small network. Here a batch takes six kernels
forward (beside its mean), seven where a layer is wide, and three backward; what it leaves behind takes one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cbn_deploy.kernels.training_steps import Gradients, NormalizerTables, Statistics
from cbn_deploy.kernels.triton import training
from cbn_deploy.kernels.triton.launch import (
    MOST_PARTIAL_MASSES,
    SUMMED_CHANNELS,
    SUMMED_ROWS,
    SUMMED_WARPS,
    table_launch,
)
from cbn_deploy.kernels.triton.start import start
from cbn_deploy.kernels.triton.training_table_kernels import (
    combination_kernel,
    density_kernel,
    gradient_tables_kernel,
    learning_kernel,
    moments_kernel,
)

__all__ = ["combination", "density", "gradients", "learned", "moments", "normalize", "statistics"]

ELEMENTS = 512  # of a table, that a program of an elementwise kernel takes


def statistics(
    pixels: Tensor, centre: Tensor, tau: Tensor, mean: Tensor, var: Tensor, epsilon: float, density_scale: float
) -> Statistics:
    """E-step and M-step; see :meth:`cbn_deploy.kernels.training_steps.TorchTables.statistics`."""
    quadratic, linear, constant = density(centre, tau, mean, var, epsilon, density_scale)
    w, masses, partial = training.expectation_parts(pixels, centre, quadratic, linear, constant)
    return Statistics(w, quadratic, linear, *moments(masses, partial, centre))


def normalize(pixels: Tensor, w: Tensor, tables: NormalizerTables, epsilon: float, out: Tensor) -> None:
    """Write y; see :meth:`cbn_deploy.kernels.training_steps.TorchTables.normalize`."""
    training.combine(pixels, tables.centre, w, *combination(tables, epsilon), out)


def gradients(grad: Tensor, pixels: Tensor, w: Tensor, tables: NormalizerTables, epsilon: float) -> Gradients:
    """The way back; see :meth:`cbn_deploy.kernels.training_steps.TorchTables.gradients`."""
    partial = training.output_parts(grad, pixels, tables.centre, w)
    packed, constant, scale, bias = gradient_tables(partial, tables, epsilon)
    return Gradients(training.packed_input_gradient(grad, pixels, tables.centre, w, packed, constant), scale, bias)


def density(
    centre: Tensor, tau: Tensor, mean: Tensor, var: Tensor, epsilon: float, density_scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The logits' coefficients of c^2 (M, D), c (M, D) and 1 (M,), but for what all components have in common."""
    components, channels = mean.shape
    launch = table_launch(components=components, channels=channels)
    quadratic, linear = (centre.new_empty(mean.shape) for _ in range(2))
    constant = centre.new_empty(components)
    start(
        density_kernel,
        (1,),
        *(table.contiguous() for table in (centre, tau, mean, var)),
        channels,
        epsilon,
        density_scale,
        quadratic,
        linear,
        constant,
        COMPONENTS=components,
        BLOCK_M=launch.block_components,
        BLOCK_D=launch.block_channels,
        warps=launch.warps,
    )
    return quadratic, linear, constant


def moments(masses: Tensor, partial: Tensor, centre: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mass (M,), mean and biased variance (M, D) from the parts that the programs of the passes have left.

    Args:
        masses: (up to MOST_PARTIAL_MASSES, M) of w.
        partial: (any number, M, 2, D) of w c and w c^2.
        centre: (D,).
    """
    components, channels = partial.shape[1], partial.shape[3]
    mass, mean, var = centre.new_empty(components), *(centre.new_empty((components, channels)) for _ in range(2))
    start(
        moments_kernel,
        (components, table_launch(components=components, channels=channels).pieces),
        partial,
        masses,
        centre.contiguous(),
        len(partial),
        len(masses),
        channels,
        mass,
        mean,
        var,
        COMPONENTS=components,
        ROWS=SUMMED_ROWS,
        MASS_ROWS=MOST_PARTIAL_MASSES,
        BLOCK_D=SUMMED_CHANNELS,
        warps=SUMMED_WARPS,
    )
    return mass, mean, var


def combination(tables: NormalizerTables, epsilon: float) -> tuple[Tensor, Tensor]:
    """A and B of y = sum_j w_j (A_j c + B_j), (M, D) each."""
    gain, offset = (tables.mean.new_empty(tables.mean.shape) for _ in range(2))
    sources = (tables.centre, tables.mean, tables.var, tables.scale, tables.bias)
    start(
        combination_kernel,
        (-(-gain.numel() // ELEMENTS),),
        *(table.contiguous() for table in sources),
        gain.shape[1],
        gain.numel(),
        epsilon,
        gain,
        offset,
        BLOCK=ELEMENTS,
        warps=4,
    )
    return gain, offset


def gradient_tables(partial: Tensor, tables: NormalizerTables, epsilon: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """From the parts (any number, M, 2, D) of the sums of w g and w g c.

    Returns:
        The input gradient's tables (M, 6, D) and constants (M, pieces), to be added over the pieces; the gradients of
        scale and bias (M, D).
    """
    components, channels = tables.mean.shape
    pieces = table_launch(components=components, channels=channels).pieces
    packed, constant = partial.new_empty((components, 6, channels)), partial.new_empty((components, pieces))
    scale, bias = (partial.new_empty((components, channels)) for _ in range(2))
    start(
        gradient_tables_kernel,
        (components, pieces),
        partial,
        *(table.contiguous() for table in tables),
        len(partial),
        channels,
        epsilon,
        packed,
        constant,
        scale,
        bias,
        COMPONENTS=components,
        ROWS=SUMMED_ROWS,
        BLOCK_D=SUMMED_CHANNELS,
        warps=SUMMED_WARPS,
    )
    return packed, constant, scale, bias


def learned(
    batch: tuple[Tensor, Tensor, Tensor],
    running: tuple[Tensor, Tensor, Tensor],
    own: tuple[Tensor, Tensor] | None,
    batches: Tensor,
    *,
    momentum: float,
    update_tau: bool,
    least_mass: float,
    tau_floor: float,
) -> tuple[Tensor, ...]:
    """What normalises a batch by its own moments, and what the batch leaves behind, in new tensors.

    Args:
        batch: mass (M,), mean and biased variance (M, D) of the batch.
        running: tau (M,), mean and variance (M, D).
        own: mean and variance (M, D) that move with the batch's beside the running ones.
        batches: () int64, their number so far.
        momentum: weight of the new value.
        update_tau: whether the priors move.
        least_mass: a component with less keeps its statistics, and is normalised by them.
        tau_floor: below it no prior falls.

    Returns:
        The mean and variance that normalise, and 1 / mass or 0; tau, mean and variance as they are now; the own mean
        and variance as they are now (empty without ``own``); the number of batches.
    """
    components, channels = running[1].shape
    launch = table_launch(components=components, channels=channels)
    table = running[1].shape
    shapes = (table, table, (components,), (components,), table, table, *((table if own else (0,)),) * 2)
    results = [*(running[1].new_empty(shape) for shape in shapes), torch.empty_like(batches)]
    start(
        learning_kernel,
        (components,),
        *(source.contiguous() for source in (*batch, *running)),
        *((source.contiguous() for source in own) if own else (None, None)),
        batches,
        channels,
        momentum,
        least_mass,
        tau_floor,
        *results[:6],
        *(results[6:8] if own else (None, None)),
        results[8],
        COMPONENTS=components,
        BLOCK_M=launch.block_components,
        BLOCK_D=launch.row_channels,
        UPDATE_TAU=update_tau,
        OWN=own is not None,
        warps=4,
    )
    return tuple(results)
