"""``/v2``: the Open Inference Protocol over HTTP, as ``tritonclient.http`` speaks it (docs/protocol.md)."""

from fastapi import APIRouter

from serving.api.v2 import infer, metadata, repository, statistics, unsupported
from serving.api.v2.health import router as health

__all__ = ["health", "router"]

router = APIRouter(tags=["open inference protocol"])
# Routes are tried in order: the busiest first, and `/v2/models/stats` before the model that could be called so.
for _part in (infer, statistics, metadata, repository, unsupported):
    router.include_router(_part.router)
