"""Is the mixture in use? Occupancy and entropy of the posteriors, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cbn_deploy.norm.layers import MixtureBatchNorm

__all__ = ["DEAD_OCCUPANCY", "MixtureHealth", "MixtureTally", "mixture_health"]

# A component that claims less than this share of the pixels does nothing for the model.
DEAD_OCCUPANCY = 1e-3


@dataclass(frozen=True, kw_only=True)
class MixtureHealth:
    """How one layer's components are used.

    Attributes:
        occupancy: M mean posteriors, one of each component; they sum to 1.
        pixel_entropy: mean over pixels of the posterior's entropy / log M. 1: every component gets every pixel (batch
            norm in disguise), 0: one-hot. 0 for M = 1.
    """

    occupancy: tuple[float, ...]
    pixel_entropy: float

    @property
    def dead(self) -> int:
        """Number of components with occupancy below :data:`DEAD_OCCUPANCY`."""
        return sum(share < DEAD_OCCUPANCY for share in self.occupancy)

    def to_dict(self) -> dict[str, Any]:
        """A dict of plain JSON types."""
        return {"occupancy": list(self.occupancy), "pixel_entropy": self.pixel_entropy, "dead": self.dead}


class MixtureTally:
    """One layer's sums over the posteriors of every batch, in float64; nothing of a batch is kept."""

    def __init__(self) -> None:
        self._claimed = torch.zeros((), dtype=torch.float64)
        self._entropy = torch.zeros((), dtype=torch.float64)
        self._pixels = 0

    @property
    def pixels(self) -> int:
        """How many were counted."""
        return self._pixels

    def add(self, posterior: Tensor) -> None:
        """Count one batch: a float posterior (B, M, *spatial), on the device of those before it."""
        w = posterior.reshape(*posterior.shape[:2], -1)
        self._claimed = self._claimed.to(w.device) + w.sum((0, 2), dtype=torch.float64)
        self._entropy = self._entropy.to(w.device) + torch.special.entr(w).sum(dtype=torch.float64)
        self._pixels += w.shape[0] * w.shape[2]

    def health(self) -> MixtureHealth:
        """What was counted; at least one pixel must have been."""
        components = len(self._claimed)
        entropy = float(self._entropy) / self._pixels / math.log(components) if components > 1 else 0.0
        return MixtureHealth(occupancy=tuple((self._claimed / self._pixels).tolist()), pixel_entropy=entropy)


def _count(tally: MixtureTally, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    assert isinstance(layer, MixtureBatchNorm)  # noqa: S101 - hooked on such layers only
    tally.add(layer.posterior(inputs[0]))


@torch.no_grad()
def mixture_health(model: nn.Module, batches: Iterable[Tensor]) -> dict[str, MixtureHealth]:
    """Posteriors under the running statistics, over ``batches`` of images (B, C, H, W), in eval mode.

    Returns:
        layer name -> :class:`MixtureHealth`, in forward order of definition; empty for a model without mixture layers.
        The model's training flag is restored.
    """
    layers = {name: m for name, m in model.named_modules() if isinstance(m, MixtureBatchNorm)}
    tallies = {name: MixtureTally() for name in layers}
    hooks = [layer.register_forward_pre_hook(partial(_count, tallies[name])) for name, layer in layers.items()]
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
