"""Temperature scaling (Guo et al. 2017), fitted on one half of the images and judged on the other.

The temperature belongs to the model's own posterior: with z its logits, pi_m the prior that they assume
(``training_prior`` of the description) and pi the class frequencies of the images at hand, T minimises

    NLL(T) = -mean_i log softmax(z_i / T + log pi - log pi_m)[y_i].

Where pi = pi_m (a balanced softmax on a balanced test set) that is Guo's NLL of ``softmax(z / T)``. Elsewhere the shift
keeps T from making up for classes that are merely more frequent here than in training: such a T would be wrong for
every other prior, and a server that corrects priors after dividing by it would favour the tail twice.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq  # type: ignore[import-untyped]  # scipy ships no type information

from cbn_deploy.runtime.probabilities import correct_prior
from cbn_deploy.training.metrics.calibration_error import Reliability, reliability
from cbn_deploy.training.metrics.outcomes import check_predictions, judge, row_blocks

__all__ = ["Calibration", "calibrate", "fit_temperature", "split_halves"]

_COLDEST, _HOTTEST = 1e-3, 1e3


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A temperature and what it does to images that it was not fitted on.

    Attributes:
        temperature: T.
        fit_images: images that it was fitted on.
        held_out_images: the others, which everything below is measured on, corrected for their class frequencies.
        nll_before: negative log-likelihood at T = 1.
        nll_after: at T.
        before: reliability at T = 1; its ``error`` is the ECE.
        after: at T.
    """

    temperature: float
    fit_images: int
    held_out_images: int
    nll_before: float
    nll_after: float
    before: Reliability
    after: Reliability

    def to_dict(self) -> dict[str, Any]:
        """A dict of plain JSON types, with ``ece_before`` and ``ece_after``."""
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        before, after = plain.pop("before"), plain.pop("after")
        return {
            **plain,
            "ece_before": before.error,
            "ece_after": after.error,
            "reliability_before": before.to_dict(),
            "reliability_after": after.to_dict(),
        }


def calibrate(
    logits: NDArray[np.floating[Any]], labels: NDArray[np.integer[Any]], model_prior: NDArray[np.float64]
) -> Calibration | None:
    """Fit on one half of the images, measure on the other; ``None`` if no temperature minimises the NLL.

    Args:
        logits: (n, K), finite, of the model as it is (not yet divided by a temperature).
        labels: (n,) true classes.
        model_prior: (K,) class probabilities that the logits assume.

    Raises:
        ValueError: shapes that do not fit, a label outside 0..K-1, logits that are not finite, or fewer than 2 images.
    """
    check_predictions(logits, labels, len(model_prior))
    if len(labels) < 2:
        raise ValueError("calibration needs at least 2 images: one half to fit on, one to judge by")
    frequencies = np.bincount(labels, minlength=len(model_prior)) / len(labels)
    shift = correct_prior(np.zeros(len(model_prior)), model_prior, frequencies)
    fit, held_out = split_halves(labels)
    temperature = fit_temperature(logits[fit], labels[fit], shift)
    if temperature is None:
        return None
    truth = labels[held_out]
    before = judge(logits[held_out], truth, shift)
    after = judge(logits[held_out] / temperature, truth, shift)
    return Calibration(
        temperature=temperature,
        fit_images=len(fit),
        held_out_images=len(held_out),
        nll_before=before.nll,
        nll_after=after.nll,
        before=reliability(before.confidence, before.correct),
        after=reliability(after.confidence, after.correct),
    )


def fit_temperature(
    logits: NDArray[np.floating[Any]],
    labels: NDArray[np.integer[Any]],
    shift: NDArray[np.float64] | None = None,
) -> float | None:
    """The T > 0 that minimises ``-mean_i log softmax(z_i / T + shift)[y_i]``, or ``None`` if there is none.

    The NLL is convex in 1/T, so its derivative rises and has at most one root, which Brent's method brackets between
    T = 0.001 and 1000. There is none if every image is classified right (the colder the better) or if the logits say
    nothing about the labels (the hotter the better).

    Args:
        logits: (n, K), finite.
        labels: (n,) true classes.
        shift: (K,) added after the division; ``-inf`` excludes a class, which must have no image. ``None``: zeros.
    """
    offset = np.zeros(logits.shape[1]) if shift is None else shift

    def slope(log_inverse: float) -> float:
        return _slope(logits, labels, offset, math.exp(log_inverse))

    cold, hot = -math.log(_COLDEST), -math.log(_HOTTEST)
    if slope(cold) <= 0 or slope(hot) >= 0:
        return None
    return math.exp(-float(brentq(slope, hot, cold)))


def split_halves(labels: NDArray[np.integer[Any]], seed: int = 0) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Two disjoint halves of the images, as indices in ascending order: every class as evenly as it divides.

    One ``numpy.random.RandomState(seed)`` shuffles the classes in turn. The odd image of a class goes to the half that
    has fewer images so far, the first one to the first half, so the halves' sizes differ by at most one.
    """
    random_state = np.random.RandomState(seed)
    halves: tuple[list[NDArray[np.int64]], list[NDArray[np.int64]]] = ([], [])
    behind = 0
    for label in np.unique(labels):
        indices = random_state.permutation(np.flatnonzero(labels == label))
        middle = len(indices) // 2
        if len(indices) % 2:
            middle += 1 - behind
            behind = 1 - behind
        halves[0].append(indices[:middle])
        halves[1].append(indices[middle:])
    first, second = (np.sort(np.concatenate(half)) for half in halves)
    return first, second


def _slope(
    logits: NDArray[np.floating[Any]], labels: NDArray[np.integer[Any]], shift: NDArray[np.float64], inverse: float
) -> float:
    """d NLL / d (1/T): the mean over images of ``sum_k p_k (z_k - z_y)``."""
    total = 0.0
    for rows in row_blocks(*logits.shape):
        z = np.asarray(logits[rows], dtype=np.float64)
        margin = z - np.take_along_axis(z, labels[rows][:, None], axis=1)
        scaled = inverse * margin + shift
        weights = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        total += float(((weights * margin).sum(axis=1) / weights.sum(axis=1)).sum())
    return total / len(labels)
