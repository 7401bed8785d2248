"""`/v2/models/{model}/stats`: what the models have done, as Triton's statistics extension reports it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter

from serving.api.schemas import v2_errors
from serving.models import Durations, ModelStatistics, ServedModel
from serving.responses import JsonResponse
from serving.services import Services, ServicesOf

__all__ = ["router"]

router = APIRouter(prefix="/v2")

_NEVER = Durations()


@dataclass(frozen=True, kw_only=True)
class InferenceStatistics:
    """Requests by outcome and stage; preparing tensors is part of the runtime's own time, and there is no cache."""

    success: Durations
    fail: Durations
    queue: Durations
    compute_input: Durations
    compute_infer: Durations
    compute_output: Durations
    cache_hit: Durations
    cache_miss: Durations


@dataclass(frozen=True, kw_only=True)
class BatchStatistics:
    """Batches of one size."""

    batch_size: int
    compute_input: Durations
    compute_infer: Durations
    compute_output: Durations


@dataclass(frozen=True, kw_only=True)
class VersionStatistics:
    """One version of a model, since it was loaded; ``last_inference`` in milliseconds since 1970."""

    name: str
    version: str
    last_inference: int
    inference_count: int
    execution_count: int
    inference_stats: InferenceStatistics
    batch_stats: list[BatchStatistics]


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Of every version that was asked for."""

    model_stats: list[VersionStatistics]


@router.get("/models/stats", response_model=Statistics, responses=v2_errors(401, 500))
async def all_statistics(services: ServicesOf) -> JsonResponse:
    """Of all models."""
    return await _answer(services.registry, services)


@router.get("/models/{model}/stats", response_model=Statistics, responses=v2_errors(401, 404, 500, 503))
async def model_statistics(model: str, services: ServicesOf) -> JsonResponse:
    """Of all versions of a model."""
    services.registry.get(model)
    return await _answer([served for served in services.registry if served.name == model], services)


@router.get(
    "/models/{model}/versions/{version}/stats", response_model=Statistics, responses=v2_errors(401, 404, 500, 503)
)
async def version_statistics(model: str, version: str, services: ServicesOf) -> JsonResponse:
    """Of one version of a model."""
    return await _answer([services.registry.get(model, version)], services)


async def _answer(models: Iterable[ServedModel], services: Services) -> JsonResponse:
    """Summed over the workers, where there are several."""
    others = [] if services.peers is None else await services.peers.statistics()
    return JsonResponse(Statistics(model_stats=[_statistics(model, others) for model in models]))


def _statistics(model: ServedModel, others: Iterable[Mapping[str, Any]]) -> VersionStatistics:
    counted = model.statistics
    for other in others:
        if (other["name"], other["version"]) == (model.name, model.version):
            counted = counted + ModelStatistics.from_dict(other["counted"])
    return VersionStatistics(
        name=model.name,
        version=model.version,
        last_inference=counted.last_inference_ms,
        inference_count=counted.inference_count,
        execution_count=counted.execution_count,
        inference_stats=InferenceStatistics(
            success=counted.success,
            fail=counted.fail,
            queue=counted.queue,
            compute_input=_NEVER,
            compute_infer=counted.compute_infer,
            compute_output=_NEVER,
            cache_hit=_NEVER,
            cache_miss=_NEVER,
        ),
        batch_stats=[
            BatchStatistics(batch_size=size, compute_input=_NEVER, compute_infer=durations, compute_output=_NEVER)
            for size, durations in sorted(counted.batches.items())
        ],
    )
