"""``cbn-serve``: serve exported models over HTTP."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from cbn_deploy.cli import run_cli
from serving.config_file import to_toml
from serving.daemon_threads import ending_the_process
from serving.logs import configure_logging
from serving.settings import ENV_PREFIX, ServingSettings, load_settings, unknown_variables
from serving.signals import exit_on_sigterm

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

app = typer.Typer(add_completion=False)
log = logging.getLogger("serving")


def _help(name: str) -> str:
    """What a setting is, and its default where there is one that says something."""
    field = ServingSettings.model_fields[name]
    if field.default_factory is not None:
        return f"{field.description} Default: the CPUs, shared out among the workers."
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
    workers: Annotated[int | None, typer.Option(help=_help("workers"))] = None,
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
    # The server's imports are left to the processes that serve.
    if settings.workers > 1:
        from serving.workers.supervisor import serve_with_workers

        serve_with_workers(settings)
    else:
        from serving.process import serve_alone

        serve_alone(settings)


def main() -> None:
    """Entry point of ``cbn-serve``."""
    configure_logging()
    exit_on_sigterm()
    with ending_the_process():
        run_cli(app)


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
