"""What the routes share: one object, made by the application factory."""

from __future__ import annotations

from collections.abc import Callable
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
from serving.tracing import Tracing
from serving.workers.peers import Peers

__all__ = ["Services", "ServicesOf"]


@dataclass(kw_only=True)
class Services:
    """The parts of a running server.

    Attributes:
        keys: ``None`` where it is open to everybody.
        tracing: ``None`` where nobody asks for traces.
        connections: how many are open; ``None`` where whoever listens does not say.
        peers: all processes that share the port; ``None`` where this is the only one.
    """

    settings: ServingSettings
    registry: ModelRegistry
    admission: Admission
    decoder: Decoder
    inference: InferencePool
    metrics: Metrics
    keys: ApiKeys | None
    watcher: Watcher
    drain: Drain
    tracing: Tracing | None
    connections: Callable[[], int] | None = None
    peers: Peers | None = None

    def not_ready(self) -> str:
        """Why requests should not be sent here; empty: they will be answered."""
        return "The server is shutting down." if self.drain.begun else self.registry.not_ready()

    def close(self) -> None:
        """Stop the threads and release the models."""
        self.watcher.close()
        self.decoder.close()
        self.inference.close()
        self.registry.close()
        if self.tracing is not None:
            self.tracing.close()


async def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


ServicesOf = Annotated[Services, Depends(_services)]
