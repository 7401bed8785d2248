"""`/v2` and `/v2/models/{model}`: what the server speaks, what a model takes and gives, and how it is run."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version as package_version
from typing import Any

from fastapi import APIRouter

from serving.api.schemas import v2_errors
from serving.api.v2.signature import ENCODED_INPUT, TensorMetadata, input_tensor, output_tensors
from serving.models import ServedModel
from serving.responses import JsonResponse
from serving.services import Services, ServicesOf

__all__ = ["EXTENSIONS", "router"]

router = APIRouter(prefix="/v2")

_ERRORS = v2_errors(401, 404, 500, 503)

# Triton's names of its extensions, and one of ours: the input `image_bytes`.
EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "schedule_policy",
    "statistics",
    ENCODED_INPUT,
)


@dataclass(frozen=True, kw_only=True)
class ServerMetadata:
    """The server and the protocol's extensions that it speaks."""

    name: str
    version: str
    extensions: list[str]


@dataclass(frozen=True, kw_only=True)
class ModelMetadata:
    """A model's inputs and outputs."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


@dataclass(frozen=True, kw_only=True)
class ModelReady:
    """This model will answer."""

    name: str
    ready: bool


@router.get("", response_model=ServerMetadata, responses=v2_errors(401, 500))
async def server_metadata() -> JsonResponse:
    """Name, version and extensions of the server."""
    metadata = ServerMetadata(name="cbn-serve", version=package_version("cbn-deploy"), extensions=list(EXTENSIONS))
    return JsonResponse(metadata)


@router.get("/models/{model}/ready", response_model=ModelReady, responses=_ERRORS)
async def model_ready(model: str, services: ServicesOf) -> JsonResponse:
    """Whether this model will answer; if not, why not."""
    return _ready(services.registry.get(model))


@router.get("/models/{model}/versions/{version}/ready", response_model=ModelReady, responses=_ERRORS)
async def version_ready(model: str, version: str, services: ServicesOf) -> JsonResponse:
    """Whether this version of the model will answer; if not, why not."""
    return _ready(services.registry.get(model, version))


@router.get("/models/{model}", response_model=ModelMetadata, responses=_ERRORS)
async def model_metadata(model: str, services: ServicesOf) -> JsonResponse:
    """A model's versions that can be asked for, inputs and outputs."""
    return _metadata(services.registry.get(model), services)


@router.get("/models/{model}/versions/{version}", response_model=ModelMetadata, responses=_ERRORS)
async def version_metadata(model: str, version: str, services: ServicesOf) -> JsonResponse:
    """The same, with the inputs and outputs of this version."""
    return _metadata(services.registry.get(model, version), services)


@router.get("/models/{model}/config", response_model=dict[str, Any], responses=_ERRORS)
async def model_config(model: str, services: ServicesOf) -> JsonResponse:
    """The model's configuration as Triton's ModelConfig message in JSON."""
    return JsonResponse(_config(services.registry.get(model), services))


@router.get("/models/{model}/versions/{version}/config", response_model=dict[str, Any], responses=_ERRORS)
async def version_config(model: str, version: str, services: ServicesOf) -> JsonResponse:
    """The same of this version."""
    return JsonResponse(_config(services.registry.get(model, version), services))


def _ready(model: ServedModel) -> JsonResponse:
    return JsonResponse(ModelReady(name=model.name, ready=True))


def _metadata(served: ServedModel, services: Services) -> JsonResponse:
    states = services.registry.index()
    metadata = ModelMetadata(
        name=served.name,
        versions=[state.version for state in states if state.name == served.name and state.state == "READY"],
        platform=served.info.runtime,
        inputs=[input_tensor(served)],
        outputs=output_tensors(served),
    )
    return JsonResponse(metadata)


def _config(model: ServedModel, services: Services) -> dict[str, Any]:
    settings = services.settings
    return {
        "name": model.name,
        "platform": model.info.runtime,
        "backend": model.info.runtime,
        "max_batch_size": settings.max_images,
        "input": [_config_tensor(input_tensor(model))],
        "output": [_config_tensor(tensor) for tensor in output_tensors(model)],
        "instance_group": [{"name": model.name, "kind": _kind(model), "count": settings.concurrency}],
        "dynamic_batching": {
            "preferred_batch_size": [settings.max_batch],
            "max_queue_delay_microseconds": round(settings.max_delay * 1e6),
            "preserve_ordering": False,
        },
    }


def _config_tensor(tensor: TensorMetadata) -> dict[str, Any]:
    """Without the batch dimension, which max_batch_size stands for."""
    return {"name": tensor.name, "data_type": f"TYPE_{tensor.datatype}", "dims": tensor.shape[1:]}


def _kind(model: ServedModel) -> str:
    return "KIND_CPU" if model.info.device == "cpu" else "KIND_GPU"
