"""Which statistics normalise a training batch, and what they leave behind: every reading of the paper, by name.

A reading is a pure function of the running statistics and of this batch's :class:`Moments`, and nothing in it carries
gradient. It returns the (mean, var) that normalise this batch, whose gradient is the operators' affair
(:mod:`cbn_deploy.kernels.training`), and the running statistics for the next one. The posteriors always come from the
running statistics of BEFORE the batch (Algorithm 2, line 2). ``momentum`` is torch's convention: the weight of the NEW
value, 1 - lambda of the paper.

=================== ==================================================================================================
name                normalises with
=================== ==================================================================================================
``batch_em``        this batch's own moments, Eq. (10)-(12) (gradient through them), as batch norm does: the default
``algorithm2``      the running statistics of BEFORE this batch: Algorithm 2, line by line
``update_then_read`` the running statistics AFTER this batch's update, Eq. (13)-(15), no gradient through them
=================== ==================================================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from cbn_deploy.norm.functional import Moments, moving_average

__all__ = ["READINGS", "MixtureStatistics", "Reading", "TrainingStep", "updated_moments"]

# A component or group that holds less than this many pixels of a batch says nothing about a variance: it keeps its
# running statistics and is normalised by them.
MIN_MASS = 2.0
# Below this prior a component could never win a pixel again; the floor lets it come back.
TAU_FLOOR = 1e-4


class MixtureStatistics(NamedTuple):
    """Running statistics of M Gaussians: tau (M,), mean (M, D), var (M, D)."""

    tau: Tensor
    mean: Tensor
    var: Tensor


class TrainingStep(NamedTuple):
    """Outcome of a reading.

    Attributes:
        mean: (M, D), normalises this batch.
        var: (M, D), likewise.
        inverse_mass: (M,) 1 / mass of the components whose mean and var are this batch's own; 0 where they are not.
        running: what the batch leaves behind.
    """

    mean: Tensor
    var: Tensor
    inverse_mass: Tensor
    running: MixtureStatistics


Reading = Callable[[MixtureStatistics, Moments, float, bool], TrainingStep]


def _usable(batch: Moments) -> Tensor:
    """(M, 1) mask of the components that this batch may update: enough pixels, and nothing but finite numbers."""
    finite = torch.isfinite(batch.mean).all(1) & torch.isfinite(batch.var).all(1)
    return ((batch.mass >= MIN_MASS) & finite)[:, None]


def updated_moments(
    mean: Tensor, var: Tensor, batch: Moments, momentum: float, unbiased: bool
) -> tuple[Tensor, Tensor]:
    """Eq. (14) and (15), out of place: mean and var, both (M, D), moved towards the batch's, where it has enough."""
    usable = _usable(batch)
    batch_var = batch.var
    if unbiased:
        batch_var = batch_var * (batch.mass / (batch.mass - 1.0).clamp_min(1.0))[:, None]
    return (
        torch.where(usable, moving_average(mean, batch.mean, momentum), mean),
        torch.where(usable, moving_average(var, batch_var, momentum), var),
    )


def _updated(
    running: MixtureStatistics, batch: Moments, momentum: float, update_tau: bool, unbiased: bool
) -> MixtureStatistics:
    """Eq. (13)-(15), out of place; empty components and non-finite batches change nothing."""
    mean, var = updated_moments(running.mean, running.var, batch, momentum, unbiased)
    tau = running.tau
    if update_tau:
        share = batch.mass / batch.mass.sum()
        tau = moving_average(tau, torch.where(torch.isfinite(share).all(), share, tau), momentum).clamp_min(TAU_FLOOR)
        tau = tau / tau.sum()
    return MixtureStatistics(tau, mean, var)


def batch_em(running: MixtureStatistics, batch: Moments, momentum: float, update_tau: bool) -> TrainingStep:
    """Normalise with this batch's moments, gradient through them; running variance unbiased, as torch's batch norm."""
    enough = batch.mass >= MIN_MASS
    return TrainingStep(
        torch.where(enough[:, None], batch.mean, running.mean),
        torch.where(enough[:, None], batch.var, running.var),
        torch.where(enough, 1.0 / batch.mass, 0.0),
        _updated(running, batch, momentum, update_tau, unbiased=True),
    )


def algorithm2(running: MixtureStatistics, batch: Moments, momentum: float, update_tau: bool) -> TrainingStep:
    """Normalise with what was known before this batch, then update (Algorithms 2 and 3 as printed)."""
    updated = _updated(running, batch, momentum, update_tau, unbiased=False)
    return TrainingStep(running.mean, running.var, torch.zeros_like(batch.mass), updated)


def update_then_read(running: MixtureStatistics, batch: Moments, momentum: float, update_tau: bool) -> TrainingStep:
    """Update first (Eq. 13-15), then normalise with the updated running statistics."""
    updated = _updated(running, batch, momentum, update_tau, unbiased=False)
    return TrainingStep(updated.mean, updated.var, torch.zeros_like(batch.mass), updated)


READINGS: Mapping[str, Reading] = {
    "batch_em": batch_em,
    "algorithm2": algorithm2,
    "update_then_read": update_then_read,
}
