"""The accuracy gate: a file of lower precision against its float32 checkpoint on labelled test images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbn_deploy.errors import ParityError
from cbn_deploy.runtime.description import shot_group
from cbn_deploy.training.evaluation import evaluate_predictions

__all__ = ["DEFAULT_MAX_DROP", "AccuracyReport", "AccuracyRow", "compare", "require_accuracy", "require_finite"]

# Points of balanced top-1 that a file may lose unless told otherwise.
DEFAULT_MAX_DROP = 0.5
# Recalls are quotients of whole numbers: what exceeds the bound by this is rounding.
_ROUNDING = 1e-9

_ADVICE = {
    "int8": "calibrate with images like those it will see",
    "fp16": "use --precision fp32",
    "bf16": "use --precision fp16, which rounds to an eighth of its steps",
}
ALL = "all classes"
_GROUPS = ("many", "medium", "few")


@dataclass(frozen=True, kw_only=True)
class AccuracyRow:
    """One group of classes.

    Attributes:
        group: "all classes", "many", "medium" or "few" (by TRAINING counts).
        images: its test images.
        float32: mean recall of its classes by the checkpoint, 0..1. For all classes that is balanced top-1, the plain
            top-1 of a balanced test set.
        lowered: the same by the file.
        agreement: share of its images on which both name the same class.
    """

    group: str
    images: int
    float32: float
    lowered: float
    agreement: float

    @property
    def drop(self) -> float:
        """What the file loses, in points; below 0 it gains."""
        return 100.0 * (self.float32 - self.lowered)


@dataclass(frozen=True, kw_only=True)
class AccuracyReport:
    """The file against the checkpoint.

    Attributes:
        test_set: where the test images are from, in words.
        images: how many.
        float32_top1: plain top-1 of the checkpoint, 0..1.
        lowered_top1: of the file.
        rows: "all classes" first, then the shot groups that have test images.
        max_drop: points of balanced top-1 that the file was allowed to lose.
    """

    test_set: str
    images: int
    float32_top1: float
    lowered_top1: float
    rows: tuple[AccuracyRow, ...]
    max_drop: float

    @property
    def drop(self) -> float:
        """Points of balanced top-1 that the file loses."""
        return self.rows[0].drop


def compare(
    float32: NDArray[np.floating[Any]],
    lowered: NDArray[np.floating[Any]],
    labels: NDArray[np.integer[Any]],
    class_counts: Sequence[int],
    *,
    test_set: str,
    max_drop: float,
) -> AccuracyReport:
    """Compare two sets of logits of the same images.

    Args:
        float32: the checkpoint's (n, K), finite.
        lowered: the file's (n, K), finite.
        labels: (n,) true classes.
        class_counts: K TRAINING counts, which decide the shot group of a class.
        test_set: for the report.
        max_drop: for the report.
    """
    before, after = (evaluate_predictions(logits, labels, class_counts) for logits in (float32, lowered))
    same = float32.argmax(1) == lowered.argmax(1)
    groups = np.array([shot_group(count) for count in class_counts])
    members = {ALL: np.ones(len(labels), bool), **{group: groups[labels] == group for group in _GROUPS}}
    rows = [
        AccuracyRow(
            group=group,
            images=int(of_group.sum()),
            float32=_mean_recall(before.per_class, labels[of_group]),
            lowered=_mean_recall(after.per_class, labels[of_group]),
            agreement=float(same[of_group].mean()),
        )
        for group, of_group in members.items()
        if of_group.any()
    ]
    return AccuracyReport(
        test_set=test_set,
        images=len(labels),
        float32_top1=before.top1,
        lowered_top1=after.top1,
        rows=tuple(rows),
        max_drop=max_drop,
    )


def require_finite(float32: NDArray[np.floating[Any]], lowered: NDArray[np.floating[Any]], precision: str) -> None:
    """Refuse logits that no accuracy can be computed from.

    Raises:
        ParityError: the checkpoint's or the file's logits are not finite on some image.
    """
    if not np.isfinite(float32).all():
        raise ParityError(
            "The checkpoint's own logits are not finite on some test images, so nothing was written; the training run "
            "diverged, retrain with a lower lr."
        )
    broken = int((~np.isfinite(lowered)).any(1).sum())
    if broken:
        raise ParityError(
            f"The {precision} file's logits are not finite on {broken} of {len(lowered)} test images, so nothing was "
            "written; its activations exceed what the type can hold, export with --precision fp32."
        )


def require_accuracy(report: AccuracyReport, precision: str) -> None:
    """The gate.

    Raises:
        ParityError: the file loses more than ``report.max_drop`` points of balanced top-1.
    """
    if report.drop <= report.max_drop + _ROUNDING:
        return
    overall = report.rows[0]
    worst = max(report.rows[1:], key=lambda row: row.drop)
    advice = _ADVICE[precision]
    raise ParityError(
        f"The {precision} file loses {report.drop:.2f} points of balanced top-1 ({overall.float32:.2%} to "
        f"{overall.lowered:.2%}; {worst.drop:.2f} on the {worst.group}-shot classes) where {report.max_drop:g} is "
        f"allowed, so nothing was written; {advice}, or accept it with --max-drop."
    )


def _mean_recall(per_class: Sequence[float | None], labels: NDArray[np.integer[Any]]) -> float:
    """Over the classes of ``labels``."""
    return float(np.mean([per_class[label] for label in np.unique(labels)]))
