"""Component occupancy as a drift signal: which Gaussians claim the pixels that arrive, compared with known images.

A layer's Gaussians share out the pixels of familiar images in proportions that hardly change. Images from another
camera, of another brightness or of other things are shared out differently, labels or no labels. The distance is the
total variation, half the sum of absolute differences: the share of the pixels that other Gaussians claim than before.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["LayerOccupancy", "OccupancyDrift"]

# Images after which an image counts half as much.
_HALF_LIFE = 256
# Two halves of 128 known images differ by up to 0.04 in a layer; from fewer images there is nothing to learn.
_MIN_IMAGES = 32
# Images of one request that are looked at.
_MAX_IMAGES = 4
# At most this share of the event loop's time is spent on looking.
_MAX_SHARE = 0.01


@dataclass(frozen=True, kw_only=True)
class LayerOccupancy:
    """What arrives at one layer.

    Attributes:
        occupancy: (M,) share of the pixels that each Gaussian claims, sums to 1.
        distance: total variation from known images, 0 to 1; ``None``: the file says nothing about known images.
    """

    occupancy: NDArray[np.float64]
    distance: float | None


class OccupancyDrift:
    """A mean of the posteriors, over pixels and images, that forgets: an image counts half after 256 others.

    To be used on the event loop only. It looks at a sample of the requests, so that it takes at most one per cent of
    the time, and says nothing before it has seen 32 images.

    Args:
        known: layer -> occupancy (M,) on known images.
        clock: seconds, for tests.
    """

    def __init__(self, known: Mapping[str, tuple[float, ...]], clock: Callable[[], float] = time.perf_counter) -> None:
        self._known = {layer: np.asarray(occupancy) for layer, occupancy in known.items()}
        self._clock = clock
        self._mean: dict[str, NDArray[np.float64]] = {}
        self._weight = 0.0
        self._resume = 0.0
        self.images = 0

    def observe(self, posteriors: Mapping[str, NDArray[np.float32]]) -> None:
        """Look at a request's posteriors, layer -> (n, M, *spatial), unless it is too soon."""
        started = self._clock()
        if not posteriors or started < self._resume:
            return
        claimed = {layer: _occupancy(posterior[:_MAX_IMAGES]) for layer, posterior in posteriors.items()}
        if not all(np.isfinite(occupancy).all() for occupancy in claimed.values()):
            return
        images = min(len(next(iter(posteriors.values()))), _MAX_IMAGES)
        kept = self._weight * 0.5 ** (images / _HALF_LIFE)
        self._weight = kept + images
        for layer, occupancy in claimed.items():
            previous = self._mean.get(layer, occupancy)
            self._mean[layer] = (kept * previous + images * occupancy) / self._weight
        self.images += images
        ended = self._clock()
        self._resume = ended + (ended - started) * (1.0 / _MAX_SHARE - 1.0)

    def layers(self) -> dict[str, LayerOccupancy]:
        """Every layer's present state; empty before there is enough to say."""
        if self.images < _MIN_IMAGES:
            return {}
        return {
            layer: LayerOccupancy(occupancy=occupancy, distance=self._distance(layer, occupancy))
            for layer, occupancy in self._mean.items()
        }

    def _distance(self, layer: str, occupancy: NDArray[np.float64]) -> float | None:
        known = self._known.get(layer)
        if known is None or known.shape != occupancy.shape:
            return None
        return float(0.5 * np.abs(occupancy - known).sum())


def _occupancy(posterior: NDArray[np.float32]) -> NDArray[np.float64]:
    return np.asarray(posterior.reshape(*posterior.shape[:2], -1).mean(axis=(0, 2), dtype=np.float64))
