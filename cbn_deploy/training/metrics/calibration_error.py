"""Do confidences mean what they say? Reliability in bins, the expected calibration error, and its class-wise form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbn_deploy.runtime.probabilities import log_softmax
from cbn_deploy.training.metrics.outcomes import row_blocks

__all__ = ["BINS", "Reliability", "class_wise_errors", "reliability"]

BINS = 15  # as Guo et al. 2017


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """A reliability diagram: predictions by confidence, in bins of equal width over 0..1.

    Attributes:
        weight: share of the predictions in each bin, sum 1.
        confidence: their mean confidence, ``None`` in an empty bin.
        accuracy: share of them that is right, ``None`` in an empty bin.
    """

    weight: tuple[float, ...]
    confidence: tuple[float | None, ...]
    accuracy: tuple[float | None, ...]

    @property
    def error(self) -> float:
        """Expected calibration error (Naeini et al. 2015): ``sum_b weight_b |accuracy_b - confidence_b|``."""
        return sum(
            weight * abs(accuracy - confidence)
            for weight, confidence, accuracy in zip(self.weight, self.confidence, self.accuracy, strict=True)
            if confidence is not None and accuracy is not None
        )

    def to_dict(self) -> dict[str, list[float | None]]:
        """A dict of plain JSON types."""
        return {"weight": [*self.weight], "confidence": [*self.confidence], "accuracy": [*self.accuracy]}


def reliability(
    confidence: NDArray[np.float64],
    correct: NDArray[np.bool_],
    weights: NDArray[np.float64] | None = None,
    bins: int = BINS,
) -> Reliability:
    """Sort predictions into bins; a confidence on an edge belongs to the lower bin.

    Args:
        confidence: (n,) in 0..1, n >= 1.
        correct: (n,) whether the prediction is right.
        weights: (n,) how much each counts, at least 0, not all 0; ``None``: equally.
        bins: how many.
    """
    bin_of_image = _bin_of(confidence, bins)
    images = np.ones(len(confidence)) if weights is None else weights
    mass = np.bincount(bin_of_image, weights=images, minlength=bins)
    return Reliability(
        weight=tuple((mass / mass.sum()).tolist()),
        confidence=_means(np.bincount(bin_of_image, weights=images * confidence, minlength=bins), mass),
        accuracy=_means(np.bincount(bin_of_image, weights=images * correct, minlength=bins), mass),
    )


def class_wise_errors(
    logits: NDArray[np.floating[Any]], labels: NDArray[np.integer[Any]], bins: int = BINS
) -> NDArray[np.float64]:
    """Calibration error of every class's own probability (Kull et al. 2019; Nixon et al. 2019 call it static): (K,).

    For class k over ALL n images, with bins of p_k: ``sum_b (n_b / n) |share of b that is class k - mean p_k in b|``.
    Their mean over the classes is the class-wise ECE. A rare class without test images still has one: every
    probability that it gets is then too much.
    """
    n, classes = logits.shape
    # n_b |share - mean| is the absolute sum of the single gaps within the bin.
    gaps = np.zeros(classes * bins)
    first_bin = np.arange(classes) * bins
    for rows in row_blocks(n, classes):
        p = np.exp(log_softmax(logits[rows]))
        gap = -p
        gap[np.arange(len(p)), labels[rows]] += 1.0
        gaps += np.bincount((_bin_of(p, bins) + first_bin).ravel(), weights=gap.ravel(), minlength=classes * bins)
    return np.asarray(np.abs(gaps.reshape(classes, bins)).sum(axis=1) / n)


def _means(sums: NDArray[Any], mass: NDArray[Any]) -> tuple[float | None, ...]:
    return tuple(float(total / of_bin) if of_bin > 0 else None for total, of_bin in zip(sums, mass, strict=True))


def _bin_of(confidence: NDArray[np.float64], bins: int) -> NDArray[np.int64]:
    return np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
