"""Is the mixture in use? Occupancy and entropy of the posteriors, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from cbn_deploy.norm.layers import MixtureBatchNorm

__all__ = ["DEAD_OCCUPANCY", "MixtureHealth", "mixture_health"]

# A component that claims less than this share of the pixels does nothing for the model.
DEAD_OCCUPANCY = 1e-3


@dataclass(frozen=True, kw_only=True)
class MixtureHealth:
    """How one layer's components are used.

    Attributes:
        occupancy: (M,) mean posterior of each component; sums to 1.
        pixel_entropy: mean over pixels of the posterior's entropy / log M. 1: every component gets every pixel (batch
            norm in disguise), 0: one-hot. 0 for M = 1.
    """

    occupancy: Tensor
    pixel_entropy: float

    @property
    def dead(self) -> int:
        """Number of components with occupancy below :data:`DEAD_OCCUPANCY`."""
        return int((self.occupancy < DEAD_OCCUPANCY).sum())


class _Tally:
    def __init__(self) -> None:
        self.claimed = torch.zeros(())
        self.entropy = 0.0
        self.pixels = 0

    def add(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, MixtureBatchNorm)  # noqa: S101 - hooked on such layers only
        w = layer.posterior(inputs[0]).flatten(2) if inputs[0].ndim > 2 else layer.posterior(inputs[0]).unsqueeze(2)
        self.claimed = self.claimed.to(w.device) + w.sum((0, 2))
        self.entropy += float(torch.special.entr(w).sum())
        self.pixels += w.shape[0] * w.shape[2]

    def health(self) -> MixtureHealth:
        components = len(self.claimed)
        entropy = self.entropy / self.pixels / math.log(components) if components > 1 else 0.0
        return MixtureHealth(occupancy=(self.claimed / self.pixels).cpu(), pixel_entropy=entropy)


@torch.no_grad()
def mixture_health(model: nn.Module, batches: Iterable[Tensor]) -> dict[str, MixtureHealth]:
    """Posteriors under the running statistics, over ``batches`` of images (B, C, H, W), in eval mode.

    Returns:
        layer name -> :class:`MixtureHealth`, in forward order of definition; empty for a model without mixture layers.
        The model's training flag is restored.
    """
    layers = {name: m for name, m in model.named_modules() if isinstance(m, MixtureBatchNorm)}
    tallies = {name: _Tally() for name in layers}
    hooks = [layer.register_forward_pre_hook(partial(_Tally.add, tallies[name])) for name, layer in layers.items()]
    training = {name: module.training for name, module in model.named_modules()}
    try:
        model.eval()
        for batch in batches:
            model(batch)
    finally:
        for hook in hooks:
            hook.remove()
        for name, module in model.named_modules():
            module.training = training[name]
    return {name: tally.health() for name, tally in tallies.items() if tally.pixels}
