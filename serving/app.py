"""The application factory: settings in, ASGI application out."""

from __future__ import annotations

from importlib.metadata import version

from fastapi import FastAPI, Security

from cbn_deploy.runtime.preprocessing import ImageLimits
from serving.admission import Admission
from serving.api import operations, v1, v2
from serving.auth import ApiKeys, require_key
from serving.draining import Drain
from serving.errors import install_error_handlers
from serving.images import Decoder
from serving.inference import InferencePool
from serving.metrics import Metrics
from serving.middleware import ObserveRequests
from serving.models import ModelRegistry, Watcher
from serving.services import Services
from serving.settings import ServingSettings, load_settings
from serving.web import page_router

__all__ = ["create_app"]


def create_app(settings: ServingSettings | None = None) -> FastAPI:
    """Load the models and build the server; ``None`` takes every setting from the environment.

    The models are loaded here, not on the first request: what cannot be served is an error before a port opens. Whoever
    makes an application and lives on after it calls ``app.state.services.close()``.

    Raises:
        CbnError: a setting, key file or model that cannot work.
    """
    services = _build_services(settings or load_settings())
    app = FastAPI(
        title="cbn-serve",
        summary="Classify images with models exported by cbn-export.",
        version=version("cbn-deploy"),
        redirect_slashes=False,
        # Ours ask nobody else for their files.
        docs_url=None,
        redoc_url=None,
    )
    app.state.services = services
    guards = [Security(require_key)] if services.keys else []
    for router in (operations.health, v2.health, page_router()):
        app.include_router(router)
    for router in (v1.router, v2.router, operations.router):
        app.include_router(router, dependencies=guards)
    install_error_handlers(app)
    app.add_middleware(ObserveRequests, metrics=services.metrics, drain=services.drain)
    return app


def _build_services(settings: ServingSettings) -> Services:
    keys = ApiKeys(settings.api_key_file) if settings.api_key_file else None
    inference = InferencePool(settings.concurrency)
    metrics = Metrics()
    registry = ModelRegistry(settings, inference, metrics.count_batch, metrics.describe)
    limits = ImageLimits(max_bytes=settings.max_upload_bytes, max_pixels=settings.max_pixels)
    return Services(
        settings=settings,
        registry=registry,
        admission=Admission(settings.max_queue),
        decoder=Decoder(settings.decode_threads, limits),
        inference=inference,
        metrics=metrics,
        keys=keys,
        watcher=Watcher(registry, settings.watch_interval),
        drain=Drain(),
    )
