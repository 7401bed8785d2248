"""``/v2``: the Open Inference Protocol's health and metadata, as ``tritonclient.http`` asks for them."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version

from fastapi import APIRouter

from cbn_deploy.runtime.signature import INPUT, LOGITS, POSTERIOR_PREFIX
from serving.api.schemas import v2_errors
from serving.models import ServedModel
from serving.responses import JsonResponse
from serving.services import ServicesOf

__all__ = ["health", "router"]

health = APIRouter(prefix="/v2/health", tags=["operations"])
router = APIRouter(prefix="/v2", tags=["open inference protocol"])

_VERSION = "1"


@dataclass(frozen=True, kw_only=True)
class ServerMetadata:
    """The server and the protocol's extensions that it speaks."""

    name: str
    version: str
    extensions: list[str]


@dataclass(frozen=True, kw_only=True)
class TensorMetadata:
    """An input or output; -1 stands for a size that may vary."""

    name: str
    datatype: str
    shape: list[int]


@dataclass(frozen=True, kw_only=True)
class ModelMetadata:
    """A model's inputs and outputs."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


@dataclass(frozen=True, kw_only=True)
class Live:
    """The process answers."""

    live: bool


@dataclass(frozen=True, kw_only=True)
class Ready:
    """Requests will be answered."""

    ready: bool


@dataclass(frozen=True, kw_only=True)
class ModelReady:
    """This model will answer."""

    name: str
    ready: bool


@health.get("/live", response_model=Live, responses=v2_errors(500))
async def server_live() -> JsonResponse:
    """Whether the process answers at all."""
    return JsonResponse(Live(live=True))


@health.get("/ready", response_model=Ready, responses=v2_errors(500))
async def server_ready() -> JsonResponse:
    """Whether requests will be answered: models are loaded and tried before the port opens, so always."""
    return JsonResponse(Ready(ready=True))


@router.get("", response_model=ServerMetadata, responses=v2_errors(401, 500))
async def server_metadata() -> JsonResponse:
    """Name, version and extensions of the server."""
    return JsonResponse(ServerMetadata(name="cbn-serve", version=version("cbn-deploy"), extensions=[]))


@router.get("/models/{model}/ready", response_model=ModelReady, responses=v2_errors(401, 404, 422, 500))
async def model_ready(model: str, services: ServicesOf) -> JsonResponse:
    """Whether this model will answer."""
    return JsonResponse(ModelReady(name=services.registry.get(model).name, ready=True))


@router.get("/models/{model}", response_model=ModelMetadata, responses=v2_errors(401, 404, 422, 500))
async def model_metadata(model: str, services: ServicesOf) -> JsonResponse:
    """A model's inputs and outputs."""
    return JsonResponse(_metadata(services.registry.get(model)))


def _metadata(model: ServedModel) -> ModelMetadata:
    size = model.description.preprocessing
    posteriors = {f"{POSTERIOR_PREFIX}{layer}": [-1, m, -1, -1] for layer, m in model.components.items()}
    outputs = {LOGITS: [-1, len(model.description.class_names)], **posteriors}
    return ModelMetadata(
        name=model.name,
        versions=[_VERSION],
        platform=model.info.runtime,
        inputs=[TensorMetadata(name=INPUT, datatype="FP32", shape=[-1, 3, size.height, size.width])],
        outputs=[TensorMetadata(name=name, datatype="FP32", shape=shape) for name, shape in outputs.items()],
    )
