"""Every knob of the server, in one place.

Precedence: an argument (a ``cbn-serve`` flag) beats the environment variable ``CBN_<NAME>``, which beats the
configuration file (``--config``), which beats the default.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from cbn_deploy.errors import SettingsError
from cbn_deploy.runtime.factory import RuntimeName, available_cpus
from cbn_deploy.runtime.signature import MODEL_NAME
from serving.config_file import read_config_file, suggest
from serving.watched_file import fingerprint

__all__ = ["ENV_PREFIX", "ModelSource", "ServingSettings", "load_settings", "unknown_variables"]

ENV_PREFIX = "CBN_"
_CONFIG = "config"
_CONFIG_VARIABLE = f"{ENV_PREFIX}{_CONFIG.upper()}"
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
# scheme://host[:port], as browsers write an origin.
_ORIGIN = re.compile(r"https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?|https?://\[[0-9A-Fa-f:.]+\](:[0-9]{1,5})?")


class ModelSource(BaseModel):
    """A model to serve: the name that clients use, and its file."""

    model_config = ConfigDict(frozen=True)

    name: str
    path: Path

    @classmethod
    def parse(cls, text: str) -> ModelSource:
        """``NAME=PATH``, or ``PATH`` alone, which is served under its file name without the suffix.

        A path that is there may have a ``=`` itself, as folders named after settings do (``lr=0.1/model.onnx``).

        Raises:
            ValueError: the name has characters other than letters, digits, ``.``, ``_`` and ``-``.
        """
        name, separator, path = text.partition("=")
        if not separator or fingerprint(Path(text)) is not None:
            name, path = Path(text).stem, text
        if not MODEL_NAME.fullmatch(name):
            raise ValueError(
                f"{name!r} is no model name (letters, digits, '.', '_', '-', at most 64); write NAME=PATH to choose one"
            )
        return cls(name=name, path=Path(path))


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # as of a path that is too long
        return False


def _share_of_cpus(before: dict[str, Any]) -> int:
    """What each worker may use of the CPUs; ``before`` are the settings that come before."""
    workers: int = before.get("workers", 1)  # absent where it is impossible
    return max(1, available_cpus() // workers)


class ServingSettings(BaseSettings):
    """What ``create_app`` and ``cbn-serve`` are given. Durations are in seconds, sizes in bytes."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, frozen=True, extra="forbid")

    models: Annotated[tuple[ModelSource, ...], NoDecode] = Field(
        default=(), description="Model files; NAME=PATH serves one under a name of its own."
    )
    model_repository: Path | None = Field(
        default=None, description="Folder of models, NAME/VERSION/model.onnx or NAME.onnx, watched for changes."
    )
    keep_versions: int = Field(
        default=2, ge=1, le=1000, description="Newest versions of a model in the folder that answer."
    )
    watch_interval: float = Field(
        default=2.0, ge=0, le=3600, description="Seconds between looks at the model files; 0: never."
    )
    model_control: bool | None = Field(
        default=None,
        description="Let clients load and unload models. Unless set: holders of API keys, or on a loopback address "
        "programs of this machine.",
    )
    runtime: RuntimeName = Field(
        default="auto", description="auto, onnxruntime, onnxruntime-cuda, openvino, torch or tensorrt."
    )
    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: int = Field(default=8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")

    workers: int = Field(default=1, ge=1, le=256, description="Processes that share the port, each with all models.")
    threads: int = Field(
        default_factory=_share_of_cpus, ge=1, le=1024, description="Threads of a worker that share one inference."
    )
    decode_threads: int = Field(
        default_factory=_share_of_cpus, ge=1, le=1024, description="Threads of a worker that decode images."
    )
    concurrency: int = Field(default=1, ge=1, le=1024, description="Inferences that a worker runs at once.")
    max_batch: int = Field(default=32, ge=1, le=4096, description="Images that one inference takes at most.")
    max_delay: float = Field(
        default=0.0, ge=0, le=10, description="Seconds that a batch which is not full waits for more images."
    )
    max_queue: int = Field(
        default=64, ge=1, le=100_000, description="Requests of a model in progress or waiting in a worker; then 503."
    )
    timeout: float = Field(
        default=30.0, gt=0, le=3600, description="Seconds from a request's body to its answer, then 504."
    )

    max_upload_bytes: int = Field(default=16 * 2**20, ge=1, le=2**31, description="Bytes of a request's body.")
    max_pixels: int = Field(default=40_000_000, ge=1, le=1_000_000_000, description="Pixels of a decoded image.")
    max_images: int = Field(default=32, ge=1, le=4096, description="Images in a request.")
    upload_timeout: float = Field(
        default=10.0, gt=0, le=3600, description="Seconds for a head to arrive, and for a body, then 408."
    )

    max_connections: int = Field(default=1000, ge=1, le=1_000_000, description="Open connections of a worker.")
    drain_delay: float = Field(
        default=0.0,
        ge=0,
        le=3600,
        description="Seconds after SIGTERM in which requests are still taken, but not ready.",
    )
    drain_timeout: int = Field(default=30, ge=1, le=3600, description="Seconds that SIGTERM leaves requests to finish.")

    api_key_file: Path | None = Field(
        default=None, description="File of API keys, one a line, read again when it changes. Without: open to all."
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Origins whose pages may call the server, separated by commas; *: all. Unless set: none.",
    )
    tls_cert: Path | None = Field(
        default=None, description="PEM file of the certificate and its chain: serve HTTPS. Read again when it changes."
    )
    tls_key: Path | None = Field(default=None, description="PEM file of the certificate's private key.")
    access_log: bool = Field(default=True, description="Log every request.")

    @field_validator("models", mode="before")
    @classmethod
    def _parse_models(cls, value: Any) -> Any:
        """``CBN_MODELS`` and the command line give text: ``PATH`` or ``NAME=PATH``, several separated by commas."""
        texts = value.split(",") if isinstance(value, str) else value
        if not isinstance(texts, list | tuple):
            raise ValueError("must be a list of PATH or NAME=PATH")
        return tuple(ModelSource.parse(text.strip()) if isinstance(text, str) else text for text in texts)

    @field_validator("models")
    @classmethod
    def _names_differ(cls, models: tuple[ModelSource, ...]) -> tuple[ModelSource, ...]:
        names = [model.name for model in models]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two models are called {name!r}; write NAME=PATH to give each its own name")
        return models

    @field_validator("models")
    @classmethod
    def _are_no_folders(cls, models: tuple[ModelSource, ...]) -> tuple[ModelSource, ...]:
        for model in models:
            if _is_folder(model.path):
                raise ValueError(
                    f"{model.path} is a folder; name a model file in it, or serve every model in it with "
                    f"--model-repository {model.path}"
                )
        return models

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _split_origins(cls, value: Any) -> Any:
        return tuple(filter(None, map(str.strip, value.split(",")))) if isinstance(value, str) else value

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ValueError(f"{origin[:80]!r} is no origin; write https://HOST, https://HOST:PORT or *")
        return origins

    @model_validator(mode="after")
    def _tls_is_whole(self) -> ServingSettings:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise PydanticCustomError("tls_half", "one TLS file")
        return self

    @model_validator(mode="after")
    def _something_to_serve(self) -> ServingSettings:
        if not self.models and self.model_repository is None:
            raise PydanticCustomError("nothing_to_serve", "no model")
        return self

    @property
    def allows_model_control(self) -> bool:
        """Whether clients may load and unload models: unless told, if only this machine or holders of a key can ask."""
        if self.model_control is not None:
            return self.model_control
        return self.api_key_file is not None or self.host in _LOOPBACK

    @property
    def only_this_machine_controls(self) -> bool:
        """Whether it is the address alone that lets clients load and unload models."""
        return self.allows_model_control and self.model_control is None and self.api_key_file is None


def load_settings(*, config: Path | None = None, **given: Any) -> ServingSettings:
    """Settings from arguments, environment and file; an argument that is ``None`` counts as not given.

    Args:
        config: a TOML file of settings; by default the one that ``CBN_CONFIG`` names, if that is set.
        given: settings by name.

    Raises:
        SettingsError: a value that is impossible, a file that cannot be read or has unknown settings, or no model.
    """
    file = config or (Path(os.environ[_CONFIG_VARIABLE]) if os.environ.get(_CONFIG_VARIABLE) else None)
    in_file = {} if file is None else read_config_file(file, ServingSettings.model_fields)
    arguments = {name: value for name, value in given.items() if value is not None}
    variables = {name.upper() for name in os.environ}
    below = {
        name: value
        for name, value in in_file.items()
        if name not in arguments and f"{ENV_PREFIX}{name.upper()}" not in variables
    }
    try:
        return ServingSettings(**below, **arguments)
    except ValidationError as error:
        raise _settings_error(error, file, below) from error


def unknown_variables() -> list[str]:
    """A sentence for each environment variable that looks like a misspelt setting."""
    known = [*ServingSettings.model_fields, _CONFIG]
    names = (
        name.upper().removeprefix(ENV_PREFIX).lower() for name in os.environ if name.upper().startswith(ENV_PREFIX)
    )
    return [
        f"{ENV_PREFIX}{name.upper()} is no setting{hint}."
        for name in sorted(names)
        if name not in known and (hint := suggest(name, known))
    ]


def _settings_error(error: ValidationError, file: Path | None, in_file: Mapping[str, Any]) -> SettingsError:
    first = error.errors()[0]
    if first["type"] == "nothing_to_serve":
        return SettingsError("Say which model files to serve: cbn-serve MODEL.onnx, or --model-repository DIR.")
    if first["type"] == "tls_half":
        return SettingsError("TLS takes both --tls-cert and --tls-key; give the other one too, or neither.")
    name = ".".join(map(str, first["loc"][:1])) or "settings"
    message = str(first["msg"]).removeprefix("Value error, ")
    places = f"{ENV_PREFIX}{name.upper()}" + (f", {name} in {file}" if name in in_file else "")
    return SettingsError(f"--{name.replace('_', '-')} ({places}): {message}; see cbn-serve --help.")
