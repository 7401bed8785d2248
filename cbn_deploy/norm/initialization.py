"""How the components start. Equal components are a fixed point of EM (w = 1/M for ever), so symmetry is broken here.

================== ===================================================================================================
name               start
================== ===================================================================================================
``identical``      mean 0, variance 1 for all: the fixed point; for controls and for :func:`convert_batchnorm`
``normal_means``   means drawn from N(0, 0.5^2), variance 1
``variance_ladder`` mean 0, variances spaced geometrically from 1/2 to 2: the components differ in radius
``first_batch``    means at M random pixels of the first training batch, variance that batch's: scikit-learn's
                   ``random_from_data``
================== ===================================================================================================
"""

from __future__ import annotations

import torch
from torch import Tensor

from cbn_deploy.norm.config import Initialization
from cbn_deploy.norm.functional import group_moments
from cbn_deploy.norm.ranks import moments_of_all_ranks, random_pixels_of_all_ranks
from cbn_deploy.norm.statistics import MixtureStatistics

__all__ = ["initial_statistics", "statistics_of_first_batch"]

MEANS_STD = 0.5


def initial_statistics(policy: Initialization, components: int, num_features: int) -> MixtureStatistics:
    """Statistics before any data: tau (M,), mean (M, D), var (M, D); drawn from torch's global generator."""
    tau = torch.full((components,), 1.0 / components)
    mean = torch.zeros(components, num_features)
    var = torch.ones(components, num_features)
    if components > 1 and policy == "normal_means":
        mean = MEANS_STD * torch.randn(components, num_features)
    elif components > 1 and policy == "variance_ladder":
        var = var * torch.logspace(-1.0, 1.0, components, base=2.0)[:, None]
    return MixtureStatistics(tau, mean, var)


def statistics_of_first_batch(x: Tensor, components: int, synchronized: bool = False) -> MixtureStatistics:
    """Means at M random pixels of ``x`` (B, D, *spatial), the batch's variance for all, tau = 1/M; no gradient.

    ``synchronized``: of all ranks' x, joined.
    """
    x = x.detach()
    pixels = (x.flatten(2) if x.ndim > 2 else x.unsqueeze(2)).transpose(1, 2).reshape(-1, x.shape[1])
    tau = x.new_full((components,), 1.0 / components)
    batch = group_moments(x, torch.zeros(len(x), dtype=torch.long, device=x.device), 1)
    if synchronized:
        batch = moments_of_all_ranks(batch, torch.zeros_like(batch.mean))
        means = random_pixels_of_all_ranks(pixels, components)
    else:
        means = pixels[torch.randint(len(pixels), (components,), device=x.device)]
    return MixtureStatistics(tau, means, batch.var.expand(components, -1).clone())
