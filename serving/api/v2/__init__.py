"""``/v2``: the Open Inference Protocol over HTTP, as ``tritonclient.http`` speaks it (docs/protocol.md)."""

from fastapi import APIRouter

from serving.api.v2 import infer, metadata, repository, statistics, unsupported
from serving.api.v2.health import router as health

__all__ = ["health", "router"]

router = APIRouter(tags=["open inference protocol"])
# First the paths that a model's name would also match.
for _part in (statistics, repository, unsupported, metadata, infer):
    router.include_router(_part.router)
