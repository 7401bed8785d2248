"""How a model does where classes are not as frequent as in the test set: forward and backward long-tailed priors.

The protocol of LADE (Hong et al., CVPR 2021, Section 4.3): test priors that fall exponentially by a ratio of 2, 5, 10,
25 or 50, in the training set's order of frequency (forward), against it (backward), and the uniform prior between.
Their test sets are drawn from the balanced one; here every image counts with the weight

    w_i = pi(y_i) / n(y_i),

n(k) being the test images of class k. That is the expectation of the drawing, without its luck and without leaving
images out: top-1 becomes ``sum_k pi(k) recall_k``. A class without test images cannot be measured: its pi(k) is 0 and
the others share its weight in proportion. The correction is told so, too, or it would expect images that cannot come.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cbn_deploy.runtime.probabilities import correct_prior
from cbn_deploy.training.metrics.calibration_error import reliability
from cbn_deploy.training.metrics.outcomes import Outcomes, check_predictions, judge

__all__ = ["RATIOS", "Direction", "ShiftedScore", "evaluate_prior_shift", "shifted_prior"]

RATIOS = (2, 5, 10, 25, 50)
Direction = Literal["forward", "uniform", "backward"]


@dataclass(frozen=True, kw_only=True)
class ShiftedScore:
    """One test prior; fractions in 0..1.

    Attributes:
        direction: "forward" (frequent training classes are frequent), "uniform" or "backward" (they are rare).
        ratio: the largest class probability over the smallest, test images or not.
        top1: weighted share of images that the model, as it is, gets right.
        ece: weighted expected calibration error.
        corrected_top1: the same with the logits corrected for this prior (:mod:`cbn_deploy.runtime.probabilities`).
        corrected_ece: likewise.
    """

    direction: Direction
    ratio: int
    top1: float
    ece: float
    corrected_top1: float
    corrected_ece: float


def shifted_prior(class_counts: Sequence[int], ratio: float, direction: Direction) -> NDArray[np.float64]:
    """(K,) class probabilities, sum 1: ``pi(k)`` proportional to ``ratio ** (-j / (K - 1))``.

    j is the class's rank by TRAINING count, 0 for the most frequent (backward: for the rarest); ties in class order.

    Raises:
        ValueError: a ratio below 1.
    """
    if not ratio >= 1:
        raise ValueError(f"ratio must be at least 1, got {ratio}")
    classes = len(class_counts)
    rank = np.empty(classes)
    rank[np.argsort(-np.asarray(class_counts), kind="stable")] = np.arange(classes)
    if direction == "backward":
        rank = classes - 1 - rank
    exponent = rank / max(classes - 1, 1) if direction != "uniform" else np.zeros(classes)
    prior = ratio**-exponent
    return np.asarray(prior / prior.sum())


def evaluate_prior_shift(
    logits: NDArray[np.floating[Any]],
    labels: NDArray[np.integer[Any]],
    class_counts: Sequence[int],
    model_prior: NDArray[np.float64],
) -> tuple[ShiftedScore, ...]:
    """Every test prior from forward 50 over uniform to backward 50.

    Classes without test images have none of it, see the top of this module.

    Args:
        logits: (n, K), finite; of a calibrated model divided by its temperature.
        labels: (n,) true classes.
        class_counts: K TRAINING counts, which order the classes.
        model_prior: (K,) class probabilities that the logits assume.

    Raises:
        ValueError: shapes that do not fit, a label outside 0..K-1, or logits that are not finite.
    """
    check_predictions(logits, labels, len(class_counts))
    as_it_is = judge(logits, labels)
    settings: list[tuple[Direction, int]] = [("forward", ratio) for ratio in reversed(RATIOS)]
    settings += [("uniform", 1), *(("backward", ratio) for ratio in RATIOS)]
    return tuple(
        _score(logits, labels, as_it_is, class_counts, model_prior, direction, ratio) for direction, ratio in settings
    )


def _score(
    logits: NDArray[np.floating[Any]],
    labels: NDArray[np.integer[Any]],
    as_it_is: Outcomes,
    class_counts: Sequence[int],
    model_prior: NDArray[np.float64],
    direction: Direction,
    ratio: int,
) -> ShiftedScore:
    images = np.bincount(labels, minlength=len(class_counts))
    prior = np.where(images > 0, shifted_prior(class_counts, ratio, direction), 0.0)
    prior /= prior.sum()
    weights = (prior / np.maximum(images, 1))[labels]
    corrected = judge(logits, labels, correct_prior(np.zeros(len(prior)), model_prior, prior))
    return ShiftedScore(
        direction=direction,
        ratio=ratio,
        top1=float(weights @ as_it_is.correct),
        ece=reliability(as_it_is.confidence, as_it_is.correct, weights).error,
        corrected_top1=float(weights @ corrected.correct),
        corrected_ece=reliability(corrected.confidence, corrected.correct, weights).error,
    )
