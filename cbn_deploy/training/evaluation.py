"""How good a classifier's predictions are, on a long-tailed problem's (balanced) test set: all figures of a test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbn_deploy.runtime.description import ShotGroup, shot_group
from cbn_deploy.training.metrics.calibration_error import Reliability, class_wise_errors, reliability
from cbn_deploy.training.metrics.intervals import Interval, wilson_interval
from cbn_deploy.training.metrics.outcomes import Outcomes, check_predictions, group_members, judge

__all__ = ["Confusion", "Evaluation", "evaluate_predictions", "most_confused"]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Metrics of one model on one test set; fractions in 0..1, ``None`` where nothing could be measured.

    Intervals are Wilson's at 95 % (:mod:`cbn_deploy.training.metrics.intervals`), calibration errors have 15 bins
    (:mod:`cbn_deploy.training.metrics.calibration_error`).

    Attributes:
        top1: share of test images whose largest logit is the true class.
        many: mean recall of the classes with more than 100 TRAINING images.
        medium: the same, 20 to 100.
        few: the same, fewer than 20.
        per_class: recall of each class, ``None`` for a class without test images.
        balanced_accuracy: mean recall of the classes that have test images.
        nll: mean negative log-likelihood of the true class, in nats.
        top1_interval: how sure ``top1`` is.
        per_class_images: test images of each class.
        per_class_interval: how sure each recall is.
        reliability: accuracy by confidence; its ``error`` is :attr:`ece`.
        many_ece: calibration error over the test images whose true class is many-shot.
        medium_ece: medium-shot.
        few_ece: few-shot.
        per_class_ece: calibration error of each class's own probability, over all images.
    """

    top1: float
    many: float | None
    medium: float | None
    few: float | None
    per_class: tuple[float | None, ...]
    balanced_accuracy: float
    nll: float
    top1_interval: Interval
    per_class_images: tuple[int, ...]
    per_class_interval: tuple[Interval | None, ...]
    reliability: Reliability
    many_ece: float | None
    medium_ece: float | None
    few_ece: float | None
    per_class_ece: tuple[float, ...]

    @property
    def ece(self) -> float:
        """Expected calibration error of the top class's softmax confidence."""
        return self.reliability.error

    @property
    def classwise_ece(self) -> float:
        """Mean of :attr:`per_class_ece`: every class weighs the same, however rare."""
        return float(np.mean(self.per_class_ece))

    def to_dict(self) -> dict[str, Any]:
        """A dict of plain JSON types: the keys of ``cbn-eval --json``."""
        return {
            "top1": self.top1,
            "many": self.many,
            "medium": self.medium,
            "few": self.few,
            "per_class": list(self.per_class),
            "ece": self.ece,
            "balanced_accuracy": self.balanced_accuracy,
            "nll": self.nll,
            "top1_interval": list(self.top1_interval),
            "per_class_images": list(self.per_class_images),
            "per_class_interval": [None if ends is None else list(ends) for ends in self.per_class_interval],
            "many_ece": self.many_ece,
            "medium_ece": self.medium_ece,
            "few_ece": self.few_ece,
            "classwise_ece": self.classwise_ece,
            "per_class_ece": list(self.per_class_ece),
            "reliability": self.reliability.to_dict(),
        }


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """``count`` test images of class ``true`` were taken for class ``predicted`` (both are class indices)."""

    true: int
    predicted: int
    count: int


def evaluate_predictions(
    logits: NDArray[np.floating[Any]], labels: NDArray[np.integer[Any]], class_counts: Sequence[int]
) -> Evaluation:
    """Compute every metric of :class:`Evaluation`.

    Args:
        logits: (n, K), finite; of a calibrated model divided by its temperature.
        labels: (n,) true classes, 0..K-1.
        class_counts: K TRAINING counts, which decide the shot group of a class.

    Raises:
        ValueError: shapes that do not fit, no images, a label outside 0..K-1, or logits that are not finite.
    """
    classes = len(class_counts)
    check_predictions(logits, labels, classes)
    outcomes = judge(logits, labels)
    images = np.bincount(labels, minlength=classes).tolist()
    hits = np.bincount(labels[outcomes.correct], minlength=classes).tolist()
    recall = tuple(hit / n if n else None for hit, n in zip(hits, images, strict=True))
    groups = group_members(class_counts, labels)
    return Evaluation(
        top1=float(outcomes.correct.mean()),
        many=_group_mean(recall, class_counts, "many"),
        medium=_group_mean(recall, class_counts, "medium"),
        few=_group_mean(recall, class_counts, "few"),
        per_class=recall,
        balanced_accuracy=float(np.mean([value for value in recall if value is not None])),
        nll=outcomes.nll,
        top1_interval=wilson_interval(sum(hits), len(labels)),
        per_class_images=tuple(images),
        per_class_interval=tuple(wilson_interval(hit, n) if n else None for hit, n in zip(hits, images, strict=True)),
        reliability=reliability(outcomes.confidence, outcomes.correct),
        many_ece=_calibration_error(outcomes, groups["many"]),
        medium_ece=_calibration_error(outcomes, groups["medium"]),
        few_ece=_calibration_error(outcomes, groups["few"]),
        per_class_ece=tuple(class_wise_errors(logits, labels).tolist()),
    )


def most_confused(
    logits: NDArray[np.floating[Any]], labels: NDArray[np.integer[Any]], limit: int = 10
) -> tuple[Confusion, ...]:
    """The ``limit`` most frequent (true, predicted) mistakes, most frequent first, ties in class order."""
    classes = logits.shape[1]
    predicted = logits.argmax(axis=1)
    wrong = predicted != labels
    # Only the pairs that occur: there are K^2 of them, far more than images where the classes are many.
    pairs, counts = np.unique(labels[wrong].astype(np.int64) * classes + predicted[wrong], return_counts=True)
    order = np.argsort(-counts, kind="stable")[:limit]
    return tuple(
        Confusion(true=int(pairs[i]) // classes, predicted=int(pairs[i]) % classes, count=int(counts[i])) for i in order
    )


def _calibration_error(outcomes: Outcomes, members: NDArray[np.bool_]) -> float | None:
    if not members.any():
        return None
    return reliability(outcomes.confidence[members], outcomes.correct[members]).error


def _group_mean(recall: Sequence[float | None], class_counts: Sequence[int], group: ShotGroup) -> float | None:
    members = [r for r, count in zip(recall, class_counts, strict=True) if r is not None and shot_group(count) == group]
    return float(np.mean(members)) if members else None
