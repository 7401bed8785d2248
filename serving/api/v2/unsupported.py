"""Triton's extensions that are not offered: 501 and a sentence, which ``tritonclient`` raises as its own exception.

What a server offers it says in the list of extensions in its metadata; these are neither there nor in the OpenAPI
document.
"""

from __future__ import annotations

from fastapi import APIRouter

from serving.errors import ApiError
from serving.responses import JsonResponse

__all__ = ["router"]

router = APIRouter(prefix="/v2", include_in_schema=False)

_SHARED_MEMORY = "This server does not read shared memory; send tensors as binary data."
_TRACE = "This server has no trace settings; its metrics are at /metrics."
_LOGGING = "This server's log settings cannot be changed while it runs."


@router.get("/systemsharedmemory/status")
@router.get("/systemsharedmemory/region/{region}/status")
@router.post("/systemsharedmemory/region/{region}/register")
@router.post("/systemsharedmemory/region/{region}/unregister")
@router.post("/systemsharedmemory/unregister")
@router.get("/cudasharedmemory/status")
@router.get("/cudasharedmemory/region/{region}/status")
@router.post("/cudasharedmemory/region/{region}/register")
@router.post("/cudasharedmemory/region/{region}/unregister")
@router.post("/cudasharedmemory/unregister")
async def shared_memory() -> JsonResponse:
    """Shared memory, of the system or of CUDA."""
    raise ApiError(501, _SHARED_MEMORY)


@router.get("/trace/setting")
@router.post("/trace/setting")
@router.get("/models/{model}/trace/setting")
@router.post("/models/{model}/trace/setting")
async def trace_settings() -> JsonResponse:
    """Trace settings."""
    raise ApiError(501, _TRACE)


@router.get("/logging")
@router.post("/logging")
async def log_settings() -> JsonResponse:
    """Log settings."""
    raise ApiError(501, _LOGGING)
