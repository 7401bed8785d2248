"""``/v1``: images in, ranked labels out."""

from __future__ import annotations

import math
from typing import Annotated

from fastapi import APIRouter, Query, Request

from cbn_deploy.runtime import Prediction
from serving.api.answers import image_results, legend
from serving.api.direct import DirectRoute
from serving.api.parameters import Choices, applied_prior, check_query, with_estimate
from serving.api.schemas import (
    ClassifyQuery,
    ClassifyResponse,
    ImageResult,
    ModelList,
    ModelSummary,
    Timing,
    problems,
)
from serving.classification import Classification
from serving.connection import while_connected
from serving.images import Upload, read_upload, split_upload
from serving.models import ServedModel
from serving.prior_estimate import RecentPrior
from serving.responses import JsonResponse
from serving.services import Services, ServicesOf
from serving.timeouts import answer_within

__all__ = ["classify_router", "router"]

router = APIRouter(prefix="/v1", tags=["classify"])
classify_router = APIRouter(prefix="/v1", tags=["classify"], route_class=DirectRoute)

_BINARY = {"type": "string", "format": "binary"}
_TYPES = ("image/jpeg", "image/png", "image/webp", "image/bmp")
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"image": {"type": "array", "items": _BINARY, "minItems": 1}},
                    "required": ["image"],
                    "additionalProperties": False,
                },
                "encoding": {"image": {"contentType": ", ".join(_TYPES)}},
            },
            **{kind: {"schema": _BINARY} for kind in _TYPES},
        },
    }
}


@router.get("/models", response_model=ModelList, responses=problems(401, 500))
async def list_models(services: ServicesOf) -> JsonResponse:
    """The models that are served, with their labels and what runs them, and what has become of every version."""
    models = [_summary(model) for model in services.registry]
    return JsonResponse(ModelList(models=models, versions=services.registry.index()))


@classify_router.post(
    "/classify",
    response_model=ClassifyResponse,
    responses=problems(400, 401, 404, 408, 413, 415, 422, 500, 503, 504),
    openapi_extra=_BODY,
)
async def classify(request: Request, query: Annotated[ClassifyQuery, Query()], services: ServicesOf) -> JsonResponse:
    """Rank the labels of one or several images, sent as the parts `image` of a form, or one image as the body."""
    model = services.registry.get(query.model, query.version)
    with services.admission.admit(model):
        choices = check_query(query, model)
        work = Classification(request, model, services)
        upload = await read_upload(request, services.settings)
        limit = min(query.timeout or math.inf, services.settings.timeout)
        async with while_connected(request), answer_within(limit):
            prediction, timing = await _classify(upload, work, services)
            recent = await _recent_prior(model, choices, services)
            choices = with_estimate(choices, recent)
            results = await _results(prediction, model, choices, services)
    return JsonResponse(
        ClassifyResponse(
            model=model.name,
            version=model.version,
            results=results,
            calibrated=model.description.temperature is not None,
            prior=applied_prior(choices, recent, model.description.class_names),
            legend=legend(max(model.components.values())) if query.explain else None,
            timing=timing,
            request_id=request.state.request_id,
        )
    )


async def _classify(upload: Upload, work: Classification, services: Services) -> tuple[Prediction, Timing]:
    images = await split_upload(upload, services.settings.max_images, services.decoder)
    timed = await work.predict(await work.decode(images))
    milliseconds = {f"{stage}_ms": round(seconds * 1000, 3) for stage, seconds in work.seconds.items()}
    return timed.prediction, Timing(**milliseconds, batch_size=timed.batch_size)


async def _recent_prior(model: ServedModel, choices: Choices, services: Services) -> RecentPrior | None:
    """``None``: no estimate was asked for."""
    return await services.decoder.run(model.traffic.prior.estimate) if choices.prior_kind == "estimate" else None


async def _results(
    prediction: Prediction, model: ServedModel, choices: Choices, services: Services
) -> list[ImageResult]:
    arguments = prediction, model.description, choices
    return await services.decoder.run(image_results, *arguments) if choices.explain else image_results(*arguments)


def _summary(model: ServedModel) -> ModelSummary:
    description = model.description
    return ModelSummary(
        name=model.name,
        version=model.version,
        architecture=description.architecture,
        components=description.components,
        labels=list(description.class_names),
        shot_groups=list(description.shot_groups),
        input_height=description.preprocessing.height,
        input_width=description.preprocessing.width,
        input_resize_shorter=description.preprocessing.resize_shorter,
        explains=bool(model.components),
        rejects=bool(description.energy_quantiles),
        calibrated=description.temperature is not None,
        runtime=model.info.runtime,
        runtime_version=model.info.version,
        kernel_path=model.info.kernel_path,
        threads=model.info.threads,
        source_sha256=description.source_sha256,
    )
