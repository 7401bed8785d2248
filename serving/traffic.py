"""What a model has been asked lately: which classes, and how the images looked to its Gaussians."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cbn_deploy.runtime import ModelDescription, Prediction
from cbn_deploy.runtime.probabilities import log_softmax
from serving.drift import OccupancyDrift
from serving.prior_estimate import PriorEstimator

__all__ = ["RecentTraffic"]

# Requests whose answers are taken in at once: numpy takes as long for one as for many.
_TOGETHER = 16


class RecentTraffic:
    """The memory of one loaded version; what it holds is bounded, and is no image.

    Attributes:
        drift: occupancy of the Gaussians, compared with known images.
    """

    def __init__(self, description: ModelDescription) -> None:
        self._temperature = description.temperature or 1.0
        self._prior = PriorEstimator(np.asarray(description.training_prior))
        self._waiting: list[NDArray[np.float32]] = []
        self.drift = OccupancyDrift(description.occupancy)

    @property
    def prior(self) -> PriorEstimator:
        """Class frequencies of the images that arrived last."""
        self._note()
        return self._prior

    def observe(self, prediction: Prediction) -> None:
        """A request was answered; to be called on the event loop only."""
        self._waiting.append(prediction.logits)
        if len(self._waiting) == _TOGETHER:
            self._note()
        self.drift.observe(prediction.posteriors)

    def _note(self) -> None:
        """Take in the answers that wait. Those that are not finite are left out: they would spoil all that follow."""
        if not self._waiting:
            return
        logits = np.concatenate(self._waiting)
        self._waiting.clear()
        finite = logits[np.isfinite(logits).all(axis=1)]
        self._prior.observe(np.exp(log_softmax(finite / self._temperature)))
