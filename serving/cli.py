"""``cbn-serve``: serve exported models over HTTP."""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Annotated

import typer
import uvicorn
from fastapi import FastAPI
from prometheus_client import disable_created_metrics

from cbn_deploy.cli import run_cli
from cbn_deploy.errors import SettingsError
from serving.app import create_app
from serving.config_file import to_toml
from serving.draining import DrainingServer
from serving.logs import configure_logging
from serving.protocol import bounded_head_protocol
from serving.services import Services
from serving.settings import ENV_PREFIX, ServingSettings, load_settings, unknown_variables
from serving.tls import TlsFiles

__all__ = ["main"]

_EXAMPLES = """
Examples:

  cbn-serve model.onnx

  cbn-serve --model-repository models        # models/NAME/VERSION/model.onnx or models/NAME.onnx

  cbn-serve birds=birds/model.onnx flowers=flowers/model.onnx --host 0.0.0.0 --port 9000

  curl -F image=@photo.jpg 'http://127.0.0.1:8000/v1/classify?top_k=3'

  cbn-serve --config cbn.toml --print-config # what it would run with, and why

  cbn-serve model.onnx --host 0.0.0.0 --tls-cert tls.crt --tls-key tls.key --api-key-file keys

Every option is also an environment variable, CBN_MAX_QUEUE=16, and a line of --config FILE, max_queue = 16. A flag
beats the variable, which beats the file, which beats the default.
"""

# A head larger than this is refused: as large as uvicorn allows where it has a limit.
_MAX_HEADER_BYTES = 64 * 2**10
_BACKLOG = 2048
_TLS_LOOK_SECONDS = 10

app = typer.Typer(add_completion=False)
log = logging.getLogger("serving")


def _help(name: str) -> str:
    """What a setting is, and its default where there is one that says something."""
    field = ServingSettings.model_fields[name]
    if field.default_factory is not None:
        return f"{field.description} Default: all CPUs."
    if isinstance(field.default, int | float | str) and not isinstance(field.default, bool):
        return f"{field.description} Default: {field.default}."
    return str(field.description)


@app.command(epilog=_EXAMPLES)
def serve(
    models: Annotated[list[str] | None, typer.Argument(metavar="MODEL.onnx ...", help=_help("models"))] = None,
    model_repository: Annotated[Path | None, typer.Option(help=_help("model_repository"))] = None,
    keep_versions: Annotated[int | None, typer.Option(help=_help("keep_versions"))] = None,
    watch_interval: Annotated[float | None, typer.Option(help=_help("watch_interval"))] = None,
    model_control: Annotated[
        bool | None, typer.Option("--model-control/--no-model-control", help=_help("model_control"))
    ] = None,
    runtime: Annotated[str | None, typer.Option(help=_help("runtime"))] = None,
    host: Annotated[str | None, typer.Option(help=_help("host"))] = None,
    port: Annotated[int | None, typer.Option(help=_help("port"))] = None,
    threads: Annotated[int | None, typer.Option(help=_help("threads"))] = None,
    decode_threads: Annotated[int | None, typer.Option(help=_help("decode_threads"))] = None,
    concurrency: Annotated[int | None, typer.Option(help=_help("concurrency"))] = None,
    max_batch: Annotated[int | None, typer.Option(help=_help("max_batch"))] = None,
    max_delay: Annotated[float | None, typer.Option(help=_help("max_delay"))] = None,
    max_queue: Annotated[int | None, typer.Option(help=_help("max_queue"))] = None,
    timeout: Annotated[float | None, typer.Option(help=_help("timeout"))] = None,
    max_upload_bytes: Annotated[int | None, typer.Option(help=_help("max_upload_bytes"))] = None,
    max_pixels: Annotated[int | None, typer.Option(help=_help("max_pixels"))] = None,
    max_images: Annotated[int | None, typer.Option(help=_help("max_images"))] = None,
    upload_timeout: Annotated[float | None, typer.Option(help=_help("upload_timeout"))] = None,
    max_connections: Annotated[int | None, typer.Option(help=_help("max_connections"))] = None,
    drain_delay: Annotated[float | None, typer.Option(help=_help("drain_delay"))] = None,
    drain_timeout: Annotated[int | None, typer.Option(help=_help("drain_timeout"))] = None,
    api_key_file: Annotated[Path | None, typer.Option(help=_help("api_key_file"))] = None,
    cors_origins: Annotated[str | None, typer.Option(help=_help("cors_origins"))] = None,
    tls_cert: Annotated[Path | None, typer.Option(help=_help("tls_cert"))] = None,
    tls_key: Annotated[Path | None, typer.Option(help=_help("tls_key"))] = None,
    access_log: Annotated[bool | None, typer.Option("--access-log/--no-access-log", help=_help("access_log"))] = None,
    config: Annotated[
        Path | None, typer.Option(help="TOML file of settings, max_queue = 16; flags and variables beat it.")
    ] = None,
    print_config: Annotated[
        bool,
        typer.Option("--print-config", help="Print every setting, and where it is from, as such a file; then end."),
    ] = False,
) -> None:
    """Serve exported models over HTTP: POST images to /v1/classify, see /docs."""
    # Every argument but the last two is a setting of the same name, and it is needed nowhere else.
    given = {name: value for name, value in locals().items() if name not in ("config", "print_config")}
    given["models"] = models or None
    settings = load_settings(config=config, **given)
    if print_config:
        typer.echo(_as_config(settings, given), nl=False)
        return
    for sentence in unknown_variables():
        log.warning(sentence)
    tls = TlsFiles(settings.tls_cert, settings.tls_key) if settings.tls_cert and settings.tls_key else None
    application = create_app(settings)
    try:
        with _listen(settings) as listener:
            _run(application, settings, listener, tls)
    finally:
        application.state.services.close()


def main() -> None:
    """Entry point of ``cbn-serve``."""
    configure_logging()
    # A second series beside every counter, which hardly anybody reads.
    disable_created_metrics()  # type: ignore[no-untyped-call]  # as the library has it
    signal.signal(signal.SIGTERM, _exit_cleanly)
    run_cli(app)


def _listen(settings: ServingSettings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise SettingsError(
            f"Cannot listen on {settings.host}:{settings.port} ({error.strerror or error}); "
            "choose another --host or --port."
        ) from error


def _run(application: FastAPI, settings: ServingSettings, listener: socket.socket, tls: TlsFiles | None) -> None:
    services: Services = application.state.services
    config = uvicorn.Config(
        application,
        http=bounded_head_protocol(settings.upload_timeout, _MAX_HEADER_BYTES),
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=settings.max_connections,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=settings.drain_timeout,
        ssl_certfile=tls.cert if tls else None,
        ssl_keyfile=tls.key if tls else None,
    )
    config.load()
    if tls is not None:
        config.callback_notify, config.timeout_notify = _renewal(tls, config), _TLS_LOOK_SECONDS
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    url = f"{'https' if tls else 'http'}://{host}:{listener.getsockname()[1]}"
    log.info("serving", extra={"fields": {"url": url, "docs": f"{url}/docs", "models": _names(application)}})
    server = DrainingServer(config, services.drain, settings.drain_delay)
    services.connections = lambda: len(server.server_state.connections)
    server.run(sockets=[listener])


def _renewal(tls: TlsFiles, config: uvicorn.Config) -> Callable[[], Awaitable[None]]:
    async def renew() -> None:
        if config.ssl is not None:
            tls.renew(config.ssl)

    return renew


def _as_config(settings: ServingSettings, given: Mapping[str, object]) -> str:
    """``settings`` as a configuration file, with a note where each came from."""
    variables = {name.upper() for name in os.environ}
    values, notes = settings.model_dump(mode="json"), {}
    values["models"] = [f"{model.name}={model.path}" for model in settings.models]
    for name in values:
        variable = f"{ENV_PREFIX}{name.upper()}"
        if given.get(name) is not None:
            notes[name] = f"--{name.replace('_', '-')}"
        elif variable in variables:
            notes[name] = variable
        else:
            notes[name] = "file" if name in settings.model_fields_set else "default"
    return to_toml(values, notes)


def _names(application: FastAPI) -> list[str]:
    return list(dict.fromkeys(model.name for model in application.state.services.registry))


def _exit_cleanly(*_: object) -> None:
    """SIGTERM while loading ends the process; while serving, uvicorn drains first and raises it again afterwards."""
    raise SystemExit(0)
