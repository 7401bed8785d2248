"""Sums over the ranks (processes) of a distributed training, so that their shares count as one batch."""

from __future__ import annotations

import torch
from torch import Tensor, distributed

from cbn_deploy.norm.functional import Moments

__all__ = ["moments_of_all_ranks", "random_pixels_of_all_ranks"]


def moments_of_all_ranks(batch: Moments, centre: Tensor) -> Moments:
    """The moments of the joined batch from those of every rank's share; no gradient.

    Summed over the ranks r are mass_r, first_r = mass_r (mean_r - centre) and second_r = mass_r (var_r + (mean_r -
    centre)^2); then mean = centre + first / mass and var = second / mass - (first / mass)^2. In float64, so that a
    centre far from the pixels costs no digits.

    Args:
        batch: this rank's moments.
        centre: (M, D), the same on every rank, such as the running means.
    """
    mass = batch.mass.double()[:, None]
    # What claims nothing has no mean, and where a share is empty not even a finite one.
    shift = torch.where(mass == 0, 0.0, batch.mean.double() - centre.double())
    spread = torch.where(mass == 0, 0.0, batch.var.double())
    sums: Tensor = torch.ops.cbn.all_reduced(torch.cat([mass, mass * shift, mass * (spread + shift.square())], 1))
    mass, first, second = torch.split(sums, [1, centre.shape[1], centre.shape[1]], dim=1)
    safe = torch.where(mass == 0, 1.0, mass)
    shift = first / safe
    var = (second / safe - shift.square()).clamp_min(0.0)
    dtype = batch.mean.dtype
    return Moments(mass[:, 0].to(dtype), (centre.double() + shift).to(dtype), var.to(dtype))


def random_pixels_of_all_ranks(pixels: Tensor, count: int) -> Tensor:
    """(count, D): pixels of the joined batch, in which this rank's ``pixels`` (n, D) come after those of lower ranks.

    Drawn from torch's global generator, which has to be in the same state on every rank.
    """
    rank, sizes = distributed.get_rank(), pixels.new_zeros(distributed.get_world_size(), dtype=torch.long)
    sizes[rank] = len(pixels)
    sizes = torch.ops.cbn.all_reduced(sizes)
    ours = torch.randint(int(sizes.sum()), (count,), device=pixels.device) - sizes[:rank].sum()
    here = (ours >= 0) & (ours < len(pixels))
    chosen = pixels.new_zeros(count, pixels.shape[1])
    chosen[here] = pixels[ours[here]]
    drawn: Tensor = torch.ops.cbn.all_reduced(chosen)
    return drawn
