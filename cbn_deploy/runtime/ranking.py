"""From logits to an answer: the prior that somebody asks for, and the ranking.

Probabilities and the equation of the prior correction are in :mod:`cbn_deploy.runtime.probabilities`. For a model whose
logits already stand for a uniform prior (a balanced softmax), ``prior=uniform`` changes nothing and ``prior=train``
adds the log frequencies back. Without ``prior`` the logits are used as they are.
"""

from __future__ import annotations

import heapq
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbn_deploy.runtime.description import ModelDescription, ShotGroup
from cbn_deploy.runtime.probabilities import correct_prior, log_softmax

__all__ = ["RankedLabel", "corrected_logits", "parse_prior", "rank"]

_SUM_TOLERANCE = 1e-6  # rounding of decimal fractions that a client sums to one


@dataclass(frozen=True, kw_only=True)
class RankedLabel:
    """One line of a ranking; ``index`` is the position among the logits."""

    label: str
    index: int
    probability: float
    shot_group: ShotGroup


def corrected_logits(
    logits: NDArray[np.floating[Any]], description: ModelDescription, prior: NDArray[np.float64] | None
) -> NDArray[np.floating[Any]]:
    """Logits (..., K) divided by the model's temperature, then moved to ``prior`` (K,); ``None``: the model's own."""
    calibrated: NDArray[np.floating[Any]] = logits / (description.temperature or 1.0)
    if prior is None:
        return calibrated
    return correct_prior(calibrated, np.asarray(description.training_prior), prior)


def rank(logits: NDArray[np.floating[Any]], description: ModelDescription, top_k: int) -> list[RankedLabel]:
    """The ``top_k`` most probable classes (all, if there are fewer) of one image's logits (K,), best first.

    Equal probabilities keep the classes' order.
    """
    probabilities = np.exp(log_softmax(logits)).tolist()
    best = heapq.nlargest(top_k, range(len(probabilities)), key=probabilities.__getitem__)
    labels, groups = description.class_names, description.shot_groups
    return [
        RankedLabel(label=labels[index], index=index, probability=probabilities[index], shot_group=groups[index])
        for index in best
    ]


def parse_prior(text: str, description: ModelDescription) -> NDArray[np.float64]:
    """The target prior (K,), summing to 1, that a client asks for.

    ``train``: the training frequencies; ``uniform``: 1/K each; a JSON object of label -> probability: classes it leaves
    out share what is missing to 1 equally, so ``{"cat": 0.9}`` is enough; ``{"cat": 0.5, "dog": 0.5}`` excludes others.

    Raises:
        ValueError: neither of these, an unknown label, a number outside 0..1, or a sum that cannot be 1.
    """
    if text == "train":
        counts = np.asarray(description.class_counts, dtype=np.float64)
        if counts.sum() <= 0:
            raise ValueError("prior=train needs the training counts, and this model does not carry any")
        return np.asarray(counts / counts.sum())
    classes = len(description.class_names)
    if text == "uniform":
        return np.full(classes, 1.0 / classes)
    return _prior_of_labels(_json_object(text), description)


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict) or not value:
        raise ValueError('prior must be train, uniform, estimate or a JSON object such as {"cat": 0.7, "dog": 0.3}')
    return value


def _prior_of_labels(given: dict[str, Any], description: ModelDescription) -> NDArray[np.float64]:
    indices = {label: index for index, label in enumerate(description.class_names)}
    prior = np.full(len(description.class_names), np.nan)
    for label, probability in given.items():
        if label not in indices:
            raise ValueError(f"prior names {_shorten(label)}, which is not a label of this model")
        if isinstance(probability, bool) or not isinstance(probability, (int, float)) or not 0 <= probability <= 1:
            raise ValueError(f"prior gives {_shorten(label)} a probability that is not a number from 0 to 1")
        prior[indices[label]] = probability
    missing = np.isnan(prior)
    rest = 1.0 - float(np.nansum(prior))
    if rest < -_SUM_TOLERANCE or (not missing.any() and rest > _SUM_TOLERANCE):
        raise ValueError(f"prior must sum to 1, but its probabilities sum to {1.0 - rest:g}")
    prior[missing] = max(rest, 0.0) / max(int(missing.sum()), 1)
    return np.asarray(prior / prior.sum())


def _shorten(label: str) -> str:
    return repr(label if len(label) <= 40 else label[:40] + "...")
