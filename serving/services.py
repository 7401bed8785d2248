"""What the routes share: one object, made by the application factory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from serving.admission import Admission
from serving.auth import ApiKeys
from serving.images import Decoder
from serving.inference import InferencePool
from serving.metrics import Metrics
from serving.models import ModelRegistry
from serving.settings import ServingSettings

__all__ = ["Services", "ServicesOf"]


@dataclass(frozen=True, kw_only=True)
class Services:
    """The parts of a running server; ``keys`` is ``None`` where it is open to everybody."""

    settings: ServingSettings
    registry: ModelRegistry
    admission: Admission
    decoder: Decoder
    inference: InferencePool
    metrics: Metrics
    keys: ApiKeys | None

    def close(self) -> None:
        """Stop the threads and release the models."""
        self.decoder.close()
        self.inference.close()
        self.registry.close()


async def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


ServicesOf = Annotated[Services, Depends(_services)]
