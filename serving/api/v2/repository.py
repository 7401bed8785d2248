"""`/v2/repository`: which models there are, and loading and unloading them."""

from __future__ import annotations

from typing import Any

import orjson
from fastapi import APIRouter, Depends, Request, Response

from serving.api.schemas import v2_errors
from serving.body import read_body
from serving.errors import ApiError
from serving.local_requests import refuse_strangers
from serving.models import ModelState
from serving.responses import JsonResponse
from serving.services import Services, ServicesOf

__all__ = ["router"]

router = APIRouter(prefix="/v2/repository")

_MAX_BODY_BYTES = 64 * 2**10


def _object(**properties: Any) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties}
    return {"requestBody": {"required": False, "content": {"application/json": {"schema": schema}}}}


@router.post(
    "/index",
    response_model=list[ModelState],
    responses=v2_errors(400, 401, 408, 413, 500),
    openapi_extra=_object(ready={"type": "boolean"}),
)
async def index(request: Request, services: ServicesOf) -> JsonResponse:
    """Every version of every model and what has become of it; with `ready`, only those that answer."""
    content = await _content(request, services)
    only_ready = content.get("ready", False)
    if not isinstance(only_ready, bool):
        raise ApiError(400, "ready must be true or false.")
    return JsonResponse([state for state in services.registry.index() if state.state == "READY" or not only_ready])


@router.post(
    "/models/{model}/load",
    dependencies=[Depends(refuse_strangers)],
    responses=v2_errors(400, 401, 403, 404, 408, 413, 422, 500, 503),
    openapi_extra=_object(parameters={"type": "object"}),
)
async def load(request: Request, model: str, services: ServicesOf) -> Response:
    """Load a model, or load it again: the present version answers until the new one does, and stays if that fails."""
    parameters = await _parameters(request, services)
    if any(name == "config" or name.startswith("file:") for name in parameters):
        raise ApiError(400, "A model is loaded from its own file only; leave config and files out.")
    await (services.peers or services.registry).load(model)
    return JsonResponse({})


@router.post(
    "/models/{model}/unload",
    dependencies=[Depends(refuse_strangers)],
    responses=v2_errors(400, 401, 403, 404, 408, 413, 422, 500, 503),
    openapi_extra=_object(parameters={"type": "object"}),
)
async def unload(request: Request, model: str, services: ServicesOf) -> Response:
    """Take a model away once the requests that it has are answered. No model depends on another."""
    await _parameters(request, services)
    await (services.peers or services.registry).unload(model)
    return JsonResponse({})


async def _parameters(request: Request, services: Services) -> dict[str, Any]:
    parameters = (await _content(request, services)).get("parameters", {})
    if not isinstance(parameters, dict):
        raise ApiError(400, "parameters must be an object.")
    return parameters


async def _content(request: Request, services: Services) -> dict[str, Any]:
    """The JSON object in the body, which may be empty."""
    body = await read_body(request, _MAX_BODY_BYTES, services.settings.upload_timeout)
    try:
        content = orjson.loads(body) if body else {}
    except orjson.JSONDecodeError as error:
        raise ApiError(400, f"The request is not valid JSON: {error}.") from None
    if not isinstance(content, dict):
        raise ApiError(400, "The request must be a JSON object.")
    return content
