"""What the routes share: one object, made by the application factory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from serving.admission import Admission
from serving.auth import ApiKeys
from serving.draining import Drain
from serving.images import Decoder
from serving.inference import InferencePool
from serving.metrics import Metrics
from serving.models import ModelRegistry, Watcher
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
    watcher: Watcher
    drain: Drain

    def not_ready(self) -> str:
        """Why requests should not be sent here; empty: they will be answered."""
        return "The server is shutting down." if self.drain.begun else self.registry.not_ready()

    def close(self) -> None:
        """Stop the threads and release the models."""
        self.watcher.close()
        self.decoder.close()
        self.inference.close()
        self.registry.close()


async def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


ServicesOf = Annotated[Services, Depends(_services)]
