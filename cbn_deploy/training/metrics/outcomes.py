"""From logits to what each prediction was worth: its class, its confidence and the likelihood of the truth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbn_deploy.runtime.description import ShotGroup, shot_group
from cbn_deploy.runtime.probabilities import log_softmax

__all__ = ["Outcomes", "check_predictions", "group_members", "judge", "row_blocks"]

_BLOCK_VALUES = 2**20  # float64 values that are softmaxed at a time: 8 MB, whatever the number of images and classes


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """n predictions against their labels.

    Attributes:
        predicted: int64 (n,), the class of the largest logit; of equal ones the first.
        confidence: float64 (n,), its softmax probability.
        correct: bool (n,), whether it is the true class.
        log_likelihood: float64 (n,), log softmax probability of the true class.
    """

    predicted: NDArray[np.int64]
    confidence: NDArray[np.float64]
    correct: NDArray[np.bool_]
    log_likelihood: NDArray[np.float64]

    @property
    def nll(self) -> float:
        """Negative log-likelihood, ``-mean_i log p(y_i | x_i)``, in nats."""
        return float(-self.log_likelihood.mean())


def judge(
    logits: NDArray[np.floating[Any]],
    labels: NDArray[np.integer[Any]],
    shift: NDArray[np.float64] | None = None,
) -> Outcomes:
    """:class:`Outcomes` of ``logits`` (n, K) for ``labels`` (n,), computed in float64 a few rows at a time.

    ``shift`` (K,) is added to every row, as a prior correction does; ``-inf`` excludes a class.
    """
    predicted = np.empty(len(labels), dtype=np.int64)
    confidence, log_likelihood = np.empty(len(labels)), np.empty(len(labels))
    for rows in row_blocks(*logits.shape):
        z = logits[rows] if shift is None else logits[rows] + shift
        log_p = log_softmax(z)
        predicted[rows] = z.argmax(axis=1)
        confidence[rows] = np.exp(log_p.max(axis=1))
        log_likelihood[rows] = np.take_along_axis(log_p, labels[rows][:, None], axis=1)[:, 0]
    return Outcomes(
        predicted=predicted, confidence=confidence, correct=predicted == labels, log_likelihood=log_likelihood
    )


def check_predictions(logits: NDArray[np.floating[Any]], labels: NDArray[np.integer[Any]], classes: int) -> None:
    """Demand logits (n, ``classes``), finite, and labels (n,) in range, n >= 1.

    Raises:
        ValueError: otherwise.
    """
    if logits.ndim != 2 or logits.shape[1] != classes or labels.shape != (len(logits),):
        raise ValueError(
            f"logits must be (n, {classes}) and labels (n,) for {classes} classes, "
            f"got {logits.shape} and {labels.shape}"
        )
    if not len(labels):
        raise ValueError("there must be at least one prediction, got none")
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"labels must lie in 0..{classes - 1}, got {labels.min()}..{labels.max()}")
    if not np.isfinite(logits).all():
        raise ValueError("logits must be finite, got NaN or infinity")


def group_members(class_counts: Sequence[int], labels: NDArray[np.integer[Any]]) -> dict[ShotGroup, NDArray[np.bool_]]:
    """Shot group -> (n,), whether the image's TRUE class belongs to it (by TRAINING counts)."""
    groups = np.array([shot_group(count) for count in class_counts])
    names: tuple[ShotGroup, ...] = ("many", "medium", "few")
    return {name: groups[labels] == name for name in names}


def row_blocks(rows: int, columns: int) -> Iterator[slice]:
    """Consecutive slices of ``rows``, so that a block in float64 stays small."""
    size = max(1, _BLOCK_VALUES // max(columns, 1))
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))
