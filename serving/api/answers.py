"""From a prediction to the answer for each image: ranking, energy, rejection, explanation."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbn_deploy.runtime import ModelDescription, Prediction
from cbn_deploy.runtime.familiarity import ALL_GROUPS, Threshold, energies, energy_threshold
from cbn_deploy.runtime.ranking import corrected_logits, rank
from serving.api.finite import require_finite
from serving.api.parameters import Choices
from serving.api.schemas import Explanation, ImageResult, LegendEntry
from serving.explain import colour, layer_map, map_size

__all__ = ["image_results", "legend"]


def image_results(prediction: Prediction, description: ModelDescription, choices: Choices) -> list[ImageResult]:
    """The answers, in the order of the images. Drawing takes milliseconds: with ``explain`` not on the event loop.

    Raises:
        ApiError: 500, the model has no finite answer to one of them.
    """
    require_finite(prediction.logits, *(prediction.posteriors.values() if choices.explain else ()))
    corrected = corrected_logits(prediction.logits, description, choices.prior)
    results = []
    for index, energy in enumerate(energies(prediction.logits).tolist()):
        threshold = _threshold(prediction.logits[index], description, choices.reject)
        rejected = None if threshold is None else energy > threshold.energy
        results.append(
            ImageResult(
                predictions=rank(corrected[index], description, choices.top_k),
                energy=energy,
                energy_threshold=None if threshold is None else threshold.energy,
                rejected=rejected,
                reject_reason=_reason(energy, threshold, choices.reject) if threshold and rejected else None,
                occupancy=_occupancy(prediction, index) if choices.explain else None,
                explanation=_explanation(prediction, index) if choices.explain else None,
            )
        )
    return results


def legend(components: int) -> list[LegendEntry]:
    """The colours of the Gaussians."""
    return [
        LegendEntry(component=component, colour="#{:02x}{:02x}{:02x}".format(*colour(component)))
        for component in range(components)
    ]


def _threshold(
    logits: NDArray[np.floating[Any]], description: ModelDescription, reject: float | None
) -> Threshold | None:
    return None if reject is None else energy_threshold(description, int(logits.argmax()), reject)


def _reason(energy: float, threshold: Threshold, reject: float | None) -> str:
    kept = f"{100 * (1 - (reject or 0)):g} %"
    known = "known images" if threshold.group == ALL_GROUPS else f"known images of '{threshold.group}' classes"
    found, limit = _told_apart(energy, threshold.energy)
    return f"The energy {found} is above {limit}, below which {kept} of the {known} stay."


def _told_apart(one: float, other: float) -> tuple[str, str]:
    """Two numbers that are not the same, with four digits or as many as it takes to see that."""
    for digits in range(4, 17):
        texts = f"{one:.{digits}g}", f"{other:.{digits}g}"
        if texts[0] != texts[1]:
            return texts
    return repr(one), repr(other)


def _occupancy(prediction: Prediction, index: int) -> dict[str, list[float]]:
    """Layer -> the mean over pixels of each component's posterior (M,)."""
    return {
        layer: posterior[index].reshape(posterior.shape[1], -1).mean(axis=1, dtype=np.float64).tolist()
        for layer, posterior in prediction.posteriors.items()
    }


def _explanation(prediction: Prediction, index: int) -> Explanation:
    posteriors = prediction.posteriors
    height, width = map_size([(posterior.shape[2], posterior.shape[3]) for posterior in posteriors.values()])
    maps = [layer_map(layer, posterior[index], (height, width)) for layer, posterior in posteriors.items()]
    return Explanation(height=height, width=width, maps=maps)
