"""What a client's parameters mean for a model: checked before its images are read."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cbn_deploy.runtime.familiarity import ALL_GROUPS, MAX_REJECTED, MIN_IMAGES
from cbn_deploy.runtime.ranking import parse_prior
from serving.api.schemas import AppliedPrior, ClassifyQuery
from serving.errors import ApiError
from serving.models import ServedModel
from serving.prior_estimate import RecentPrior

__all__ = ["Choices", "applied_prior", "check_query", "with_estimate"]

# Nineteen of twenty familiar images are accepted: the usual operating point.
_REJECTED = 0.05


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What a client asked for.

    Attributes:
        top_k: labels an image.
        prior_kind: where the prior comes from; ``None``: none was asked for.
        prior: target prior (K,); ``None``: the model's own.
        reject: share of familiar images that may be rejected; ``None``: no judgement.
        explain: whether to draw the posteriors.
    """

    top_k: int
    prior_kind: Literal["train", "uniform", "labels", "estimate"] | None = None
    prior: NDArray[np.float64] | None = None
    reject: float | None = None
    explain: bool = False


def check_query(query: ClassifyQuery, model: ServedModel) -> Choices:
    """The parameters in terms of this model.

    Raises:
        ApiError: 422, the model cannot do what is asked, or a prior or share that makes no sense.
    """
    if query.explain and not model.components:
        raise ApiError(422, f"explain: {model.name} returns no posteriors; export it with --with-posterior.")
    choices = Choices(top_k=query.top_k, reject=_rejected_share(query.reject, model), explain=query.explain)
    match query.prior:
        case None:
            return choices
        case "estimate":
            return dataclasses.replace(choices, prior_kind="estimate")
        case "train" | "uniform" as kind:
            return dataclasses.replace(choices, prior_kind=kind, prior=_prior(kind, model))
        case labels:
            return dataclasses.replace(choices, prior_kind="labels", prior=_prior(labels, model))


def with_estimate(choices: Choices, recent: RecentPrior | None) -> Choices:
    """The choices with the estimate that was asked for, if one was; until there is one, the model's own prior holds."""
    return choices if recent is None else dataclasses.replace(choices, prior=recent.prior)


def applied_prior(choices: Choices, recent: RecentPrior | None, labels: tuple[str, ...]) -> AppliedPrior | None:
    """What the answer says about the prior."""
    if choices.prior_kind is None:
        return None
    estimated = None if recent is None or recent.prior is None else recent.prior.tolist()
    return AppliedPrior(
        kind=choices.prior_kind,
        applied=choices.prior is not None,
        images=None if recent is None else recent.images,
        needed=None if recent is None else recent.needed,
        probabilities=None if estimated is None else dict(zip(labels, estimated, strict=True)),
    )


def _prior(text: str, model: ServedModel) -> NDArray[np.float64]:
    try:
        return parse_prior(text, model.description)
    except ValueError as error:
        raise ApiError(422, f"{error}.") from error


def _rejected_share(text: str | None, model: ServedModel) -> float | None:
    if text is None or text == "false":
        return None
    share = _REJECTED if text == "true" else float(text)
    if not 0 < share <= MAX_REJECTED:
        raise ApiError(422, f"reject must be true, false or a share above 0 and at most {MAX_REJECTED}.")
    if ALL_GROUPS not in model.description.energy_quantiles:
        raise ApiError(
            422,
            f"reject: {model.name} does not know the energies of known images; export it with --data DIR and at least "
            f"{MIN_IMAGES} test images in it.",
        )
    return share
