"""``cbn-serve``: serve exported models over HTTP."""

from __future__ import annotations

import logging
import signal
import socket
from pathlib import Path
from typing import Annotated

import typer
import uvicorn
from fastapi import FastAPI

from cbn_deploy.cli import run_cli
from cbn_deploy.errors import SettingsError
from serving.app import create_app
from serving.draining import DrainingServer
from serving.logs import configure_logging
from serving.protocol import header_deadline_protocol
from serving.settings import ServingSettings, load_settings

__all__ = ["main"]

_EXAMPLES = """
Examples:

  cbn-serve model.onnx

  cbn-serve --model-repository models        # models/NAME/VERSION/model.onnx or models/NAME.onnx

  cbn-serve birds=birds/model.onnx flowers=flowers/model.onnx --host 0.0.0.0 --port 9000

  curl -F image=@photo.jpg 'http://127.0.0.1:8000/v1/classify?top_k=3'

Every option is also an environment variable: CBN_MAX_QUEUE=16 is --max-queue 16. A flag beats the variable.
"""

# A header block larger than this is refused; uvicorn's own default, stated.
_MAX_HEADER_BYTES = 64 * 2**10
_BACKLOG = 2048

app = typer.Typer(add_completion=False)
log = logging.getLogger("serving")


@app.command(epilog=_EXAMPLES)
def serve(
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODEL.onnx ...", help="Model files; NAME=PATH serves one under a name of its own."),
    ] = None,
    model_repository: Annotated[
        Path | None, typer.Option(help="Folder of models, NAME/VERSION/model.onnx or NAME.onnx, watched for changes.")
    ] = None,
    keep_versions: Annotated[
        int | None, typer.Option(help="Newest versions of a model in the folder that answer. Default: 2.")
    ] = None,
    watch_interval: Annotated[
        float | None, typer.Option(help="Seconds between looks at the model files; 0: never. Default: 2.")
    ] = None,
    model_control: Annotated[
        bool | None,
        typer.Option(
            "--model-control/--no-model-control",
            help="Let clients load and unload models. Default: only on a loopback address or with --api-key-file.",
        ),
    ] = None,
    runtime: Annotated[
        str | None, typer.Option(help="auto, onnxruntime, onnxruntime-cuda, openvino, torch or tensorrt.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on. Default: 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one. Default: 8000.")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads that share one inference. Default: all CPUs.")] = None,
    decode_threads: Annotated[int | None, typer.Option(help="Threads that decode images. Default: all CPUs.")] = None,
    concurrency: Annotated[int | None, typer.Option(help="Inferences that run at once. Default: 1.")] = None,
    max_batch: Annotated[int | None, typer.Option(help="Images that one inference takes at most. Default: 32.")] = None,
    max_delay: Annotated[
        float | None,
        typer.Option(help="Seconds that a batch which is not full waits for more images. Default: 0."),
    ] = None,
    max_queue: Annotated[
        int | None, typer.Option(help="Requests of a model in progress or waiting; then 503. Default: 64.")
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(help="Seconds for decoding and inference, then 504. Default: 30.")
    ] = None,
    max_upload_bytes: Annotated[int | None, typer.Option(help="Bytes of a request's body. Default: 16777216.")] = None,
    max_pixels: Annotated[int | None, typer.Option(help="Pixels of a decoded image. Default: 40000000.")] = None,
    max_images: Annotated[int | None, typer.Option(help="Images in a request. Default: 32.")] = None,
    upload_timeout: Annotated[
        float | None, typer.Option(help="Seconds for a head to arrive, and for a body, then 408. Default: 10.")
    ] = None,
    max_connections: Annotated[int | None, typer.Option(help="Open connections. Default: 1000.")] = None,
    drain_delay: Annotated[
        float | None,
        typer.Option(help="Seconds after SIGTERM in which requests are still taken, but not ready. Default: 0."),
    ] = None,
    drain_timeout: Annotated[
        int | None, typer.Option(help="Seconds that SIGTERM leaves requests to finish. Default: 30.")
    ] = None,
    api_key_file: Annotated[
        Path | None, typer.Option(help="File of API keys, one a line; without it the server is open.")
    ] = None,
) -> None:
    """Serve exported models over HTTP: POST images to /v1/classify, see /docs."""
    # Every argument is a setting of the same name, and it is needed nowhere else.
    settings = load_settings(**{**locals(), "models": models or None})
    application = create_app(settings)
    try:
        with _listen(settings) as listener:
            _run(application, settings, listener)
    finally:
        application.state.services.close()


def main() -> None:
    """Entry point of ``cbn-serve``."""
    configure_logging()
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


def _run(application: FastAPI, settings: ServingSettings, listener: socket.socket) -> None:
    config = uvicorn.Config(
        application,
        http=header_deadline_protocol(settings.upload_timeout),
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=settings.max_connections,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=settings.drain_timeout,
        h11_max_incomplete_event_size=_MAX_HEADER_BYTES,
    )
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    url = f"http://{host}:{listener.getsockname()[1]}"
    log.info("serving", extra={"fields": {"url": url, "docs": f"{url}/docs", "models": _names(application)}})
    DrainingServer(config, application.state.services.drain, settings.drain_delay).run(sockets=[listener])


def _names(application: FastAPI) -> list[str]:
    return list(dict.fromkeys(model.name for model in application.state.services.registry))


def _exit_cleanly(*_: object) -> None:
    """SIGTERM while loading ends the process; while serving, uvicorn drains first and raises it again afterwards."""
    raise SystemExit(0)
