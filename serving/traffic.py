"""What a model has been asked lately: which classes, and how the images looked to its Gaussians."""

from __future__ import annotations

import numpy as np

from cbn_deploy.runtime import ModelDescription, Prediction
from cbn_deploy.runtime.probabilities import log_softmax
from serving.drift import OccupancyDrift
from serving.prior_estimate import PriorEstimator

__all__ = ["RecentTraffic"]


class RecentTraffic:
    """The memory of one loaded version; what it holds is bounded, and is no image.

    Attributes:
        prior: class frequencies of the images that arrived last.
        drift: occupancy of the Gaussians, compared with known images.
    """

    def __init__(self, description: ModelDescription) -> None:
        self._temperature = description.temperature or 1.0
        self.prior = PriorEstimator(np.asarray(description.training_prior))
        self.drift = OccupancyDrift(description.occupancy)

    def observe(self, prediction: Prediction) -> None:
        """A request was answered. Answers that are not finite are left out: they would spoil all that follow."""
        if not np.isfinite(prediction.logits).all():
            return
        self.prior.observe(np.exp(log_softmax(prediction.logits / self._temperature)))
        self.drift.observe(prediction.posteriors)
