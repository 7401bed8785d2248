"""The shapes of answers, as clients read them in the OpenAPI document."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from cbn_deploy.runtime.ranking import RankedLabel
from serving.explain import LayerMap
from serving.models import ModelState

__all__ = [
    "AppliedPrior",
    "ClassifyQuery",
    "ClassifyResponse",
    "Explanation",
    "ImageResult",
    "LegendEntry",
    "ModelList",
    "ModelSummary",
    "Timing",
    "problems",
    "v2_errors",
]


class ClassifyQuery(BaseModel):
    """The parameters of a classification."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = Field(default=None, description="Which model; needed only where several are served.")
    version: str | None = Field(default=None, description="Which version of it; default: the newest.")
    timeout: float | None = Field(
        default=None,
        ge=0.01,
        allow_inf_nan=False,
        description="Seconds for the answer, from 0.01; at most the server's own limit.",
    )
    top_k: int = Field(default=5, ge=1, le=1_000_000, description="How many labels to return; all, if there are fewer.")
    prior: str | None = Field(
        default=None,
        max_length=16_384,  # it has to fit into a request's head
        description="The class frequencies to expect: train (those of the training set), uniform, estimate (those of "
        "the images that this model was sent last, once there are enough), or a JSON object of label -> probability; "
        "labels it leaves out share the rest. Default: the model's own assumption.",
    )
    reject: str | None = Field(
        default=None,
        pattern=r"^(true|false|0?\.[0-9]{1,9})$",
        description="Judge whether an image is like those that the model knows: true, or the share of familiar images "
        "that may be rejected, above 0 and at most 0.5. true is 0.05.",
    )
    explain: bool = Field(
        default=False,
        description="Return which Gaussian claims which pixel: each layer's component occupancy, and a picture of it.",
    )


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """Which Gaussian claims which pixel, layer by layer: PNG files in base64, all of one size."""

    height: int
    width: int
    maps: list[LayerMap]


@dataclass(frozen=True, kw_only=True)
class LegendEntry:
    """The colour of a Gaussian where it is certain; it turns to grey where it is not."""

    component: int
    colour: Annotated[str, Field(description="#rrggbb")]


@dataclass(frozen=True, kw_only=True)
class AppliedPrior:
    """The class frequencies that the probabilities assume, where a client asked for any."""

    kind: Literal["train", "uniform", "labels", "estimate"]
    applied: Annotated[
        bool, Field(description="False: too few images for an estimate; the model's own assumption holds.")
    ]
    images: Annotated[int | None, Field(description="Of an estimate: how many images it rests on.")]
    needed: Annotated[int | None, Field(description="Of an estimate: how many images it takes.")]
    probabilities: Annotated[dict[str, float] | None, Field(description="Of an estimate: label -> frequency.")]


@dataclass(frozen=True, kw_only=True)
class ImageResult:
    """The answer for one image."""

    predictions: list[RankedLabel]
    energy: Annotated[float, Field(description="-logsumexp of the logits: the higher, the less familiar the image.")]
    energy_threshold: Annotated[float | None, Field(description="With reject: the energy that may not be exceeded.")]
    rejected: Annotated[bool | None, Field(description="With reject: whether the image is too unlike known ones.")]
    reject_reason: Annotated[str | None, Field(description="Why, if it is.")]
    occupancy: Annotated[
        dict[str, list[float]] | None,
        Field(description="With explain: layer -> the share of its pixels that each Gaussian claims (sums to 1)."),
    ]
    explanation: Annotated[Explanation | None, Field(description="With explain: pictures of the layers.")]


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Milliseconds by stage."""

    decode_ms: float
    queue_ms: float
    inference_ms: float
    batch_size: Annotated[int, Field(description="Images that ran together, those of other requests included.")]


@dataclass(frozen=True, kw_only=True)
class ClassifyResponse:
    """The answers, in the order of the images."""

    model: str
    version: str
    results: list[ImageResult]
    calibrated: Annotated[bool, Field(description="Whether a temperature makes the probabilities calibrated.")]
    prior: AppliedPrior | None
    legend: Annotated[list[LegendEntry] | None, Field(description="With explain: the colours of the Gaussians.")]
    timing: Timing
    request_id: str


@dataclass(frozen=True, kw_only=True)
class ModelSummary:
    """A version of a model that is served, and what runs it."""

    name: str
    version: str
    architecture: str
    components: Annotated[int, Field(description="Gaussians a layer; 0 for a batch-norm model.")]
    labels: list[str]
    shot_groups: Annotated[list[str], Field(description="many, medium or few training images, for each label.")]
    input_height: int
    input_width: int
    input_resize_shorter: Annotated[
        int | None,
        Field(description="Pixels that the shorter edge gets before the centre is cut out; null: stretched to fit."),
    ]
    explains: Annotated[bool, Field(description="Whether explain works: exported with --with-posterior.")]
    rejects: Annotated[bool, Field(description="Whether reject works: the file has the energies of known images.")]
    calibrated: Annotated[bool, Field(description="Whether the file has a temperature.")]
    runtime: str
    runtime_version: str
    kernel_path: str
    threads: int
    source_sha256: str


@dataclass(frozen=True, kw_only=True)
class ModelList:
    """Every version that answers, newest first, and the state of those that do not."""

    models: list[ModelSummary]
    versions: list[ModelState]


class Problem(BaseModel):
    """An error, after RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    request_id: str


class V2Error(BaseModel):
    """An error of the Open Inference Protocol."""

    error: str


_MEANINGS = {
    400: "The body is malformed or incomplete.",
    401: "The server needs an API key.",
    403: "The server does not let this client load and unload models.",
    404: "There is no such path or model.",
    405: "The path does not take this method.",
    408: "The body did not arrive in time.",
    413: "Too many bytes, pixels, frames or images.",
    415: "Not an image of a format that is read.",
    422: "A bad parameter, or a damaged image.",
    500: "A fault of the server.",
    503: "The server is full, or the model is not ready; try again after Retry-After seconds.",
    504: "The answer took too long.",
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI responses of these statuses with a problem+json body."""
    return {status: _response(status, "application/problem+json", Problem) for status in statuses}


def v2_errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI responses of these statuses with the Open Inference Protocol's body."""
    return {status: _response(status, "application/json", V2Error) for status in statuses}


def _response(status: int, media_type: str, model: type[BaseModel]) -> dict[str, Any]:
    response: dict[str, Any] = {
        "description": _MEANINGS[status],
        "content": {media_type: {"schema": model.model_json_schema()}},
    }
    if status == 503:
        response["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds to wait."}}
    return response
