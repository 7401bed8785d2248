"""How familiar an image looks to a model: the energy score, and from which energy on it is rejected.

The energy -logsumexp(z) of an image's logits z is low where a model knows what it sees (Liu et al. 2020). Rare classes
have smaller logits, so that one threshold for all would reject mostly them: energies are compared with those of known
images that look like a class of the same shot group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbn_deploy.runtime.description import ENERGY_LEVELS, ModelDescription

__all__ = ["ALL_GROUPS", "MAX_REJECTED", "MIN_IMAGES", "Threshold", "energies", "energy_quantiles", "energy_threshold"]

ALL_GROUPS = "all"
# Fewer say nothing about one image in twenty.
MIN_IMAGES = 20
# Below the median "unfamiliar" loses its meaning.
MAX_REJECTED = 0.5


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """Images with an energy above ``energy`` are rejected; ``group``: the known images that it was measured on."""

    group: str
    energy: float


def energies(logits: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """``-logsumexp`` over the classes: (..., K) -> (...), in float64."""
    z = np.asarray(logits, dtype=np.float64)
    peak = z.max(axis=-1, keepdims=True)
    return np.asarray(-(peak[..., 0] + np.log(np.exp(z - peak).sum(axis=-1))))


def energy_quantiles(logits: NDArray[np.floating[Any]], shot_groups: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """``energy_quantiles`` of a :class:`ModelDescription`, from known images' logits (n, K) and the classes' groups.

    Empty if there are fewer than ``MIN_IMAGES`` images; without a group that fewer than so many images look like.
    """
    energy = energies(logits)
    predicted = np.asarray(shot_groups)[logits.argmax(axis=-1)]
    members = {ALL_GROUPS: energy, **{group: energy[predicted == group] for group in dict.fromkeys(shot_groups)}}
    return {
        group: tuple(np.quantile(values, ENERGY_LEVELS).tolist())
        for group, values in members.items()
        if len(values) >= MIN_IMAGES
    }


def energy_threshold(description: ModelDescription, predicted: int, rejected: float) -> Threshold | None:
    """The energy that the share ``rejected`` of known images like these exceed, linear between the stored quantiles.

    Args:
        description: of the model.
        predicted: index of the class that the model's own probabilities put first.
        rejected: above 0, at most 0.5.

    Returns:
        ``None`` if the model carries no energies.
    """
    if not 0 < rejected <= MAX_REJECTED:
        raise ValueError(f"rejected must be above 0 and at most {MAX_REJECTED}, got {rejected}")
    quantiles = description.energy_quantiles
    group = description.shot_groups[predicted] if description.shot_groups[predicted] in quantiles else ALL_GROUPS
    if group not in quantiles:
        return None
    return Threshold(group=group, energy=float(np.interp(1.0 - rejected, ENERGY_LEVELS, quantiles[group])))
