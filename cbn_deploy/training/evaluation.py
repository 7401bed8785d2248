"""How good a classifier's predictions are, on a long-tailed problem's (balanced) test set. numpy only, no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbn_deploy.runtime.description import ShotGroup, shot_group

__all__ = ["Confusion", "Evaluation", "evaluate_predictions", "expected_calibration_error", "most_confused"]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Metrics of one model on one test set; fractions in 0..1, ``None`` where nothing could be measured.

    Attributes:
        top1: share of test images whose largest logit is the true class.
        many: mean recall of the classes with more than 100 TRAINING images.
        medium: the same, 20 to 100.
        few: the same, fewer than 20.
        per_class: recall of each class, ``None`` for a class without test images.
        ece: expected calibration error of the softmax confidences, 15 bins.
    """

    top1: float
    many: float | None
    medium: float | None
    few: float | None
    per_class: tuple[float | None, ...]
    ece: float

    def to_dict(self) -> dict[str, Any]:
        """A dict of plain JSON types: the keys of ``cbn-eval --json``."""
        return {
            "top1": self.top1,
            "many": self.many,
            "medium": self.medium,
            "few": self.few,
            "per_class": list(self.per_class),
            "ece": self.ece,
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
        logits: (n, K), finite.
        labels: (n,) true classes, 0..K-1.
        class_counts: K TRAINING counts, which decide the shot group of a class.

    Raises:
        ValueError: shapes that do not fit, no images, a label outside 0..K-1, or logits that are not finite.
    """
    _check(logits, labels, len(class_counts))
    correct = logits.argmax(axis=1) == labels
    images = np.bincount(labels, minlength=len(class_counts))
    hits = np.bincount(labels[correct], minlength=len(class_counts))
    recall = [float(hit) / float(n) if n else None for hit, n in zip(hits, images, strict=True)]
    return Evaluation(
        top1=float(correct.mean()),
        many=_group_mean(recall, class_counts, "many"),
        medium=_group_mean(recall, class_counts, "medium"),
        few=_group_mean(recall, class_counts, "few"),
        per_class=tuple(recall),
        ece=expected_calibration_error(_softmax(logits), labels),
    )


def expected_calibration_error(
    probabilities: NDArray[np.float64], labels: NDArray[np.integer[Any]], bins: int = 15
) -> float:
    """ECE: ``sum_b (n_b / n) |accuracy(b) - mean confidence(b)|`` over equal-width bins of the top probability.

    A confidence on a bin's edge belongs to the lower bin. ``probabilities`` (n, K), ``labels`` (n,).
    """
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    bin_of_image = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    # n_b |accuracy - confidence| is the absolute sum of the single gaps within the bin.
    gaps = np.bincount(bin_of_image, weights=correct - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(labels))


def most_confused(
    logits: NDArray[np.floating[Any]], labels: NDArray[np.integer[Any]], limit: int = 10
) -> tuple[Confusion, ...]:
    """The ``limit`` most frequent (true, predicted) mistakes, most frequent first, ties in class order."""
    classes = logits.shape[1]
    predicted = logits.argmax(axis=1)
    wrong = predicted != labels
    pair_counts = np.bincount(labels[wrong] * classes + predicted[wrong], minlength=classes * classes)
    order = np.argsort(-pair_counts, kind="stable")[:limit]
    return tuple(
        Confusion(true=int(pair) // classes, predicted=int(pair) % classes, count=int(pair_counts[pair]))
        for pair in order
        if pair_counts[pair]
    )


def _check(logits: NDArray[np.floating[Any]], labels: NDArray[np.integer[Any]], classes: int) -> None:
    if logits.ndim != 2 or logits.shape[1] != classes or labels.shape != (len(logits),):
        raise ValueError(
            f"logits must be (n, {classes}) and labels (n,), got {logits.shape} and {labels.shape} "
            f"for {classes} class counts"
        )
    if not len(labels):
        raise ValueError("there must be at least one prediction, got none")
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"labels must lie in 0..{classes - 1}, got {labels.min()}..{labels.max()}")
    if not np.isfinite(logits).all():
        raise ValueError("logits must be finite, got NaN or infinity")


def _softmax(logits: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))


def _group_mean(recall: list[float | None], class_counts: Sequence[int], group: ShotGroup) -> float | None:
    members = [r for r, count in zip(recall, class_counts, strict=True) if r is not None and shot_group(count) == group]
    return float(np.mean(members)) if members else None
