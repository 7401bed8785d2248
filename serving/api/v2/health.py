"""`/v2/health`: for whoever decides whether to restart the process, or to send it requests."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import APIRouter

from serving.api.schemas import v2_errors
from serving.errors import ApiError
from serving.responses import JsonResponse
from serving.services import ServicesOf

__all__ = ["router"]

router = APIRouter(prefix="/v2/health", tags=["operations"])


@dataclass(frozen=True, kw_only=True)
class Live:
    """The process answers."""

    live: bool


@dataclass(frozen=True, kw_only=True)
class Ready:
    """Requests will be answered."""

    ready: bool


@router.get("/live", response_model=Live, responses=v2_errors(500))
async def server_live() -> JsonResponse:
    """Whether the process answers at all."""
    return JsonResponse(Live(live=True))


@router.get("/ready", response_model=Ready, responses=v2_errors(500, 503))
async def server_ready(services: ServicesOf) -> JsonResponse:
    """Whether every model that was there at the start will answer; if not, why not. 503 too once SIGTERM has come."""
    reason = services.not_ready()
    if reason:
        raise ApiError(503, reason, {"Retry-After": "1"})
    return JsonResponse(Ready(ready=True))
