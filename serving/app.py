"""The application factory: settings in, ASGI application out."""

from __future__ import annotations

from importlib.metadata import version

from fastapi import FastAPI, Security
from starlette.middleware.cors import CORSMiddleware

from cbn_deploy.runtime.preprocessing import ImageLimits
from serving.admission import Admission
from serving.api import operations, v1, v2
from serving.auth import ApiKeys, require_key
from serving.draining import Drain
from serving.errors import install_error_handlers
from serving.head import HeadAsGet
from serving.images import Decoder
from serving.inference import InferencePool
from serving.metrics import Metrics
from serving.middleware import ObserveRequests
from serving.models import ModelRegistry, Watcher
from serving.services import Services
from serving.settings import ServingSettings, load_settings
from serving.state_metrics import StateCollector
from serving.tracing import Tracing, tracing_from_environment
from serving.web import page_router

__all__ = ["create_app"]


# What a page on another origin may send and read beyond what every page may.
_SENT_ACROSS_ORIGINS = (
    "Authorization",
    "Content-Type",
    "Inference-Header-Content-Length",
    "Traceparent",
    "X-API-Key",
    "X-Request-ID",
)
_READ_ACROSS_ORIGINS = ("Inference-Header-Content-Length", "Retry-After", "X-Request-ID")


def create_app(
    settings: ServingSettings | None = None,
    *,
    tracing: Tracing | None = None,
    unloaded: frozenset[str] = frozenset(),
) -> FastAPI:
    """Load the models and build the server.

    Args:
        settings: ``None``: every one from the environment, or the file that it names.
        tracing: ``None``: what the ``OTEL_*`` variables ask for.
        unloaded: models that are left out until a client loads them.

    The models are loaded here, not on the first request: what cannot be served is an error before a port opens. Whoever
    makes an application and lives on after it calls ``app.state.services.close()``.

    Raises:
        CbnError: a setting, key file or model that cannot work.
    """
    services = _build_services(settings or load_settings(), tracing or tracing_from_environment(), unloaded)
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
    # Routes are tried in this order.
    app.include_router(v1.classify_router, dependencies=guards)
    for router in (operations.health, v2.health, page_router()):
        app.include_router(router)
    for router in (v1.router, v2.router, operations.router):
        app.include_router(router, dependencies=guards)
    install_error_handlers(app)
    if services.settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=services.settings.cors_origins,
            allow_methods=("GET", "POST"),
            allow_headers=_SENT_ACROSS_ORIGINS,
            expose_headers=_READ_ACROSS_ORIGINS,
        )
    app.add_middleware(HeadAsGet)
    app.add_middleware(
        ObserveRequests,
        metrics=services.metrics,
        drain=services.drain,
        tracing=services.tracing,
        log_requests=services.settings.access_log,
    )
    return app


def _build_services(settings: ServingSettings, tracing: Tracing | None, unloaded: frozenset[str]) -> Services:
    keys = ApiKeys(settings.api_key_file) if settings.api_key_file else None
    inference = InferencePool(settings.concurrency)
    metrics = Metrics()
    registry = ModelRegistry(settings, inference, metrics.count_batch, unloaded)
    limits = ImageLimits(max_bytes=settings.max_upload_bytes, max_pixels=settings.max_pixels)
    services = Services(
        settings=settings,
        registry=registry,
        admission=Admission(settings.max_queue),
        decoder=Decoder(settings.decode_threads, limits),
        inference=inference,
        metrics=metrics,
        keys=keys,
        watcher=Watcher(registry, settings.watch_interval),
        drain=Drain(),
        tracing=tracing,
    )
    metrics.register(StateCollector(services))
    return services
