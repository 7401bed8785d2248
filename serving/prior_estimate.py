"""Estimate the class frequencies of the images that arrive, from the model's own answers.

Saerens, Latinne and Decaestecker (2002): where only the class prior has changed since training, the prior that makes
the answers most likely is found by expectation-maximisation. With p_nk the model's probability of class k for image n
under its own prior pi_m, repeat

    q_nk = p_nk pi_k / pi_m_k, normalised over k;    pi_k = (sum_n q_nk + 1) / (N + K)

until pi stays. The 1 is an imaginary image of every class: without it, a class that none of N images looks like would
be excluded from all answers that follow.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["MIN_IMAGES", "PriorEstimator", "RecentPrior", "estimate_prior"]

# Below this an estimate says more about chance than about the images.
MIN_IMAGES = 64
_MAX_IMAGES = 1024
_MAX_BYTES = 8 * 2**20
_ITERATIONS = 500
_TOLERANCE = 1e-6


def estimate_prior(probabilities: NDArray[np.floating[Any]], model_prior: NDArray[np.float64]) -> NDArray[np.float64]:
    """The prior (K,) by the equations above, to 1e-6 in the sum of absolute changes or after 500 rounds.

    Args:
        probabilities: (N, K), the model's, under its own prior; rows sum to 1.
        model_prior: (K,). A class with prior 0 is treated as the rarest class that was seen, as prior correction does.
    """
    images, classes = probabilities.shape
    weights = probabilities / np.maximum(model_prior, model_prior[model_prior > 0].min())
    prior = np.full(classes, 1.0 / classes)
    for _ in range(_ITERATIONS):
        # sum_n q_nk, without the (N, K) table of q.
        expected = prior * (weights.T @ (1.0 / (weights @ prior)))
        previous, prior = prior, (expected + 1.0) / (images + classes)
        if np.abs(prior - previous).sum() < _TOLERANCE:
            break
    return prior


@dataclass(frozen=True, kw_only=True)
class RecentPrior:
    """What is known about the images that arrived last.

    Attributes:
        images: how many are remembered.
        needed: how many an estimate takes.
        prior: (K,), or ``None``: too few so far.
    """

    images: int
    needed: int
    prior: NDArray[np.float64] | None


class PriorEstimator:
    """Remembers the model's probabilities for the last 1,024 images, fewer for models of many classes (8 MiB in all).

    An estimate takes 64 images, or two for every class where that is more and as many are remembered.
    """

    def __init__(self, model_prior: NDArray[np.float64]) -> None:
        classes = len(model_prior)
        capacity = max(MIN_IMAGES, min(_MAX_IMAGES, _MAX_BYTES // (4 * classes)))
        self.needed = min(max(MIN_IMAGES, 2 * classes), capacity)
        self._model_prior = model_prior
        self._ring: NDArray[np.float32] = np.empty((capacity, classes), np.float32)
        self._lock = threading.Lock()  # observed on the event loop, estimated in a thread
        self._seen = 0
        self._estimated_at = 0
        self._estimate: NDArray[np.float64] | None = None

    @property
    def images(self) -> int:
        """How many are remembered."""
        return min(self._seen, len(self._ring))

    def observe(self, probabilities: NDArray[np.floating[Any]]) -> None:
        """Remember the answers for n images, (n, K), under the model's own prior; the oldest are forgotten."""
        newest = probabilities[-len(self._ring) :]
        with self._lock:
            places = (self._seen + np.arange(len(newest))) % len(self._ring)
            self._ring[places] = newest
            self._seen += len(newest)

    def estimate(self) -> RecentPrior:
        """The prior of what is remembered; computed anew once a sixteenth of it has changed, so not on the event loop.

        With 1,000 classes that is some 500 products of a (1,024, 1,000) matrix and a vector.
        """
        with self._lock:
            images, seen, estimated = self.images, self._seen, self._estimate
            if images < self.needed:
                return RecentPrior(images=images, needed=self.needed, prior=None)
            if estimated is not None and seen - self._estimated_at < images // 16:
                return RecentPrior(images=images, needed=self.needed, prior=estimated)
            remembered = self._ring[:images].astype(np.float64)
            self._estimated_at = seen
        estimated = estimate_prior(remembered, self._model_prior)
        with self._lock:
            self._estimate = estimated
        return RecentPrior(images=images, needed=self.needed, prior=estimated)
