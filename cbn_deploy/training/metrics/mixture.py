"""Is the mixture in use? The same figures as :func:`cbn_deploy.norm.mixture_health`, from posteriors of any runtime."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbn_deploy.norm.diagnostics import DEAD_OCCUPANCY

__all__ = ["LayerMixture", "MixtureTally"]


@dataclass(frozen=True, kw_only=True)
class LayerMixture:
    """How one layer uses its M Gaussians on test images.

    Attributes:
        occupancy: M shares of the pixels, sum 1.
        pixel_entropy: mean entropy of the posterior / log M; 1 is batch norm in disguise, 0 one-hot.
        dead: components that claim next to nothing.
    """

    occupancy: tuple[float, ...]
    pixel_entropy: float
    dead: int


class MixtureTally:
    """Sums over the posteriors of every batch; nothing of a batch is kept."""

    def __init__(self) -> None:
        self._layers: dict[str, _Sums] = {}

    def add(self, posteriors: Mapping[str, NDArray[np.floating[Any]]]) -> None:
        """Count one batch: layer -> posterior (B, M, *spatial)."""
        for layer, posterior in posteriors.items():
            self._layers.setdefault(layer, _Sums(posterior.shape[1])).add(posterior)

    def health(self) -> dict[str, LayerMixture]:
        """Layer -> what was counted, in the order of the first batch; empty if there were no posteriors."""
        return {layer: sums.health() for layer, sums in self._layers.items()}


class _Sums:
    def __init__(self, components: int) -> None:
        self.claimed = np.zeros(components)
        self.entropy = 0.0
        self.pixels = 0

    def add(self, posterior: NDArray[np.floating[Any]]) -> None:
        w = posterior.reshape(*posterior.shape[:2], -1)
        self.claimed += w.sum(axis=(0, 2), dtype=np.float64)
        # w log w is 0 at 0; the smallest normal number stands in, so that no logarithm is infinite.
        tiny = np.finfo(w.dtype).tiny
        self.entropy -= float((w * np.log(np.maximum(w, tiny))).sum(dtype=np.float64))
        self.pixels += w.shape[0] * w.shape[2]

    def health(self) -> LayerMixture:
        occupancy = self.claimed / self.pixels
        components = len(occupancy)
        entropy = self.entropy / self.pixels / math.log(components) if components > 1 else 0.0
        return LayerMixture(
            occupancy=tuple(occupancy.tolist()),
            pixel_entropy=entropy,
            dead=int((occupancy < DEAD_OCCUPANCY).sum()),
        )
