"""What a layer takes from a training batch: the normaliser of the batch, and everything that the batch moves.

The equations are those of :mod:`cbn_deploy.norm.statistics`. On CUDA the default reading is one operator,
``torch.ops.cbn.batch_em``, which is one kernel where there is Triton: in plain operations it is some forty launches,
which take longer than the pixels of a small network.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from cbn_deploy.kernels import cuda
from cbn_deploy.norm.functional import Moments
from cbn_deploy.norm.statistics import (
    MIN_MASS,
    READINGS,
    TAU_FLOOR,
    MixtureStatistics,
    TrainingStep,
    updated_moments,
)

__all__ = ["Learned", "NormalizerAverages", "learn"]


class NormalizerAverages(NamedTuple):
    """Moving averages of the compound path's own moments: mean and var, (M, D) each."""

    mean: Tensor
    var: Tensor


_Results = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


class Learned(NamedTuple):
    """Outcome of a batch.

    Attributes:
        step: what normalises the batch, and the running statistics that it leaves.
        own: the averages that it leaves, where the layer keeps any.
        batches: () int64, the number of batches seen.
    """

    step: TrainingStep
    own: NormalizerAverages | None
    batches: Tensor


def learn(
    reading: str,
    running: MixtureStatistics,
    own: NormalizerAverages | None,
    batches: Tensor,
    batch: Moments,
    momentum: float,
    update_tau: bool,
) -> Learned:
    """Apply a reading to a batch, out of place and without waiting for a GPU.

    Args:
        reading: name in :data:`cbn_deploy.norm.statistics.READINGS`.
        running: the running statistics.
        own: averages that move with this batch beside them, or ``None``.
        batches: () int64, the number of batches seen before.
        batch: moments of the batch.
        momentum: weight of the new value.
        update_tau: whether the batch moves the priors.
    """
    if reading == "batch_em" and cuda.takes_tables(*batch, *running, *(own or ())):
        results = torch.ops.cbn.batch_em(*batch, *running, *(own or (None, None)), batches, momentum, update_tau)
        step = TrainingStep(results[0], results[1], results[2], MixtureStatistics(*results[3:6]))
        return Learned(step, NormalizerAverages(*results[6:8]) if own else None, results[8])
    return _learned(reading, running, own, batches, batch, momentum, update_tau)


def _learned(
    reading: str,
    running: MixtureStatistics,
    own: NormalizerAverages | None,
    batches: Tensor,
    batch: Moments,
    momentum: float,
    update_tau: bool,
) -> Learned:
    """As :func:`learn`, in plain operations."""
    step = READINGS[reading](running, batch, momentum, update_tau)
    if own is not None:
        own = NormalizerAverages(*updated_moments(*own, batch, momentum, unbiased=True))
    return Learned(step, own, batches + 1)


@torch.library.custom_op("cbn::batch_em", mutates_args=())
def batch_em_operator(
    mass: Tensor,
    batch_mean: Tensor,
    batch_var: Tensor,
    tau: Tensor,
    mean: Tensor,
    var: Tensor,
    own_mean: Tensor | None,
    own_var: Tensor | None,
    batches: Tensor,
    momentum: float,
    update_tau: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """:func:`cbn_deploy.norm.statistics.batch_em` and what else a batch moves, as one operator.

    Args:
        mass: (M,) of the batch, float32.
        batch_mean: (M, D).
        batch_var: (M, D).
        tau: (M,) running statistics.
        mean: (M, D).
        var: (M, D).
        own_mean: (M, D), moves with the batch beside them.
        own_var: (M, D).
        batches: () int64.
        momentum: weight of the new value.
        update_tau: whether the priors move.

    Returns:
        mean, var, inverse_mass that normalise the batch; tau, mean, var, own_mean, own_var and batches as they are now,
        all new tensors. Without own ones, empty tensors in their place.
    """
    batch, running = Moments(mass, batch_mean, batch_var), MixtureStatistics(tau, mean, var)
    own = None if own_mean is None or own_var is None else NormalizerAverages(own_mean, own_var)
    kernels = cuda.training_tables() if cuda.takes_tables(*batch, *running, *(own or ())) else None
    if kernels is not None:
        found: _Results = kernels.learned(
            batch,
            running,
            own,
            batches,
            momentum=momentum,
            update_tau=update_tau,
            least_mass=MIN_MASS,
            tau_floor=TAU_FLOOR,
        )
        return found
    step, own, batches = _learned("batch_em", running, own, batches, batch, momentum, update_tau)
    # An operator must not return what it was given.
    priors = step.running.tau if update_tau else tau.clone()
    own_mean, own_var = own or (tau.new_empty(0), tau.new_empty(0))
    _, mean, var = step.running
    return step.mean, step.var, step.inverse_mass, priors, mean, var, own_mean, own_var, batches


@batch_em_operator.register_fake
def _(
    mass: Tensor,
    batch_mean: Tensor,
    batch_var: Tensor,
    tau: Tensor,
    mean: Tensor,
    var: Tensor,
    own_mean: Tensor | None,
    own_var: Tensor | None,
    batches: Tensor,
    momentum: float,
    update_tau: bool,
) -> _Results:
    del momentum, update_tau
    own_mean, own_var = (tau.new_empty(0) if table is None else table for table in (own_mean, own_var))
    moved = (batch_mean, batch_var, mass, tau, mean, var, own_mean, own_var, batches)
    used_mean, used_var, inverse_mass, *statistics = (torch.empty_like(table) for table in moved)
    new_tau, new_mean, new_var, own_mean, own_var, batches = statistics
    return used_mean, used_var, inverse_mass, new_tau, new_mean, new_var, own_mean, own_var, batches
