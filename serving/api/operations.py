"""For the people and machines that keep the server running: ``/healthz`` and ``/metrics``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST

from serving.api.schemas import problems
from serving.responses import JsonResponse
from serving.services import ServicesOf

__all__ = ["health", "router"]

health = APIRouter(tags=["operations"])
router = APIRouter(tags=["operations"])


@dataclass(frozen=True, kw_only=True)
class Health:
    """The server answers."""

    status: Literal["ok"]


@health.get("/healthz", response_model=Health, responses=problems(500))
async def healthz() -> JsonResponse:
    """For load balancers: 200 as long as the server answers."""
    return JsonResponse(Health(status="ok"))


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **problems(401, 500)},
)
async def metrics(services: ServicesOf) -> Response:
    """Counters and histograms of all workers in the Prometheus text format."""
    text = services.metrics.render()
    if services.peers is not None:
        text = await services.peers.metrics(text)
    return Response(text, media_type=CONTENT_TYPE_LATEST)
