"""The shapes of answers, as clients read them in the OpenAPI document."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from serving.models import ModelState
from serving.ranking import RankedLabel

__all__ = [
    "ClassifyQuery",
    "ClassifyResponse",
    "ImageResult",
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
        default=None, gt=0, allow_inf_nan=False, description="Seconds for the answer; at most the server's own limit."
    )
    top_k: int = Field(default=5, ge=1, description="How many labels to return; all, if there are fewer.")
    prior: str | None = Field(
        default=None,
        description="The class frequencies to expect: train (those of the training set), uniform, or a JSON object of "
        "label -> probability; labels it leaves out share the rest. Default: the model's own assumption.",
    )
    explain: bool = Field(default=False, description="Return each layer's component occupancy.")


@dataclass(frozen=True, kw_only=True)
class ImageResult:
    """The answer for one image."""

    predictions: list[RankedLabel]
    energy: Annotated[float, Field(description="-logsumexp of the logits: the higher, the less familiar the image.")]
    occupancy: Annotated[
        dict[str, list[float]] | None,
        Field(description="With explain: layer -> the share of its pixels that each Gaussian claims (sums to 1)."),
    ]


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Milliseconds by stage."""

    decode_ms: float
    queue_ms: float
    inference_ms: float


@dataclass(frozen=True, kw_only=True)
class ClassifyResponse:
    """The answers, in the order of the images."""

    model: str
    version: str
    results: list[ImageResult]
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
    explains: Annotated[bool, Field(description="Whether explain works: exported with --with-posterior.")]
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
    403: "The server does not let clients load and unload models.",
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
