"""One process that serves: the application, and uvicorn around it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import uvicorn
from fastapi import FastAPI
from prometheus_client import disable_created_metrics

from serving.app import create_app
from serving.draining import DrainingServer
from serving.listener import announce, bind, listen
from serving.open_files import within_open_files
from serving.protocol import bounded_head_protocol
from serving.services import Services
from serving.settings import ServingSettings
from serving.tls import TlsFiles

__all__ = ["model_names", "serve_alone", "tls_files", "uvicorn_config", "without_created_series"]

# A head larger than this is refused: as large as uvicorn allows where it has a limit.
_MAX_HEADER_BYTES = 64 * 2**10
_TLS_LOOK_SECONDS = 10


def serve_alone(settings: ServingSettings) -> None:
    """Load the models, listen, and answer until a signal ends it.

    Raises:
        CbnError: a setting, file or model that cannot work.
    """
    without_created_series()
    settings = within_open_files(settings)
    tls = tls_files(settings)
    application = create_app(settings)
    services: Services = application.state.services
    try:
        with bind(settings) as listener:
            listen(listener, settings)
            config = uvicorn_config(application, settings, tls)
            announce(listener, settings, model_names(services))
            server = DrainingServer(config, services.drain, settings.drain_delay)
            services.connections = lambda: len(server.server_state.connections)
            server.run(sockets=[listener])
    finally:
        services.close()


def without_created_series() -> None:
    """Leave out the second series beside every counter, which hardly anybody reads."""
    disable_created_metrics()  # type: ignore[no-untyped-call]  # as the library has it


def tls_files(settings: ServingSettings) -> TlsFiles | None:
    """The certificate and its key, if there are any.

    Raises:
        SettingsError: they cannot be used.
    """
    return TlsFiles(settings.tls_cert, settings.tls_key) if settings.tls_cert and settings.tls_key else None


def uvicorn_config(application: FastAPI, settings: ServingSettings, tls: TlsFiles | None) -> uvicorn.Config:
    """uvicorn as ``settings`` want it, loaded."""
    config = uvicorn.Config(
        application,
        http=bounded_head_protocol(settings.upload_timeout, _MAX_HEADER_BYTES, settings.max_connections),
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=settings.drain_timeout,
        ssl_certfile=tls.cert if tls else None,
        ssl_keyfile=tls.key if tls else None,
    )
    config.load()
    if tls is not None:
        config.callback_notify, config.timeout_notify = _renewal(tls, config), _TLS_LOOK_SECONDS
    return config


def model_names(services: Services) -> list[str]:
    """Of the models that answer."""
    return list(dict.fromkeys(model.name for model in services.registry))


def _renewal(tls: TlsFiles, config: uvicorn.Config) -> Callable[[], Awaitable[None]]:
    async def renew() -> None:
        if config.ssl is not None:
            tls.renew(config.ssl)

    return renew
