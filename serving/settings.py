"""Every knob of the server, in one place.

Precedence: an argument (a ``cbn-serve`` flag) beats the environment variable ``CBN_<NAME>``, which beats the default.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from cbn_deploy.errors import SettingsError
from cbn_deploy.runtime.factory import RuntimeName, available_cpus

__all__ = ["MODEL_NAME", "ModelSource", "ServingSettings", "load_settings"]

_ENV_PREFIX = "CBN_"
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class ModelSource(BaseModel):
    """A model to serve: the name that clients use, and its file."""

    model_config = ConfigDict(frozen=True)

    name: str
    path: Path

    @classmethod
    def parse(cls, text: str) -> ModelSource:
        """``NAME=PATH``, or ``PATH`` alone, which is served under its file name without the suffix.

        Raises:
            ValueError: the name has characters other than letters, digits, ``.``, ``_`` and ``-``.
        """
        name, separator, path = text.partition("=")
        if not separator:
            name, path = Path(text).stem, text
        if not MODEL_NAME.fullmatch(name):
            raise ValueError(
                f"{name!r} is no model name (letters, digits, '.', '_', '-', at most 64); write NAME=PATH to choose one"
            )
        return cls(name=name, path=Path(path))


class ServingSettings(BaseSettings):
    """What ``create_app`` and ``cbn-serve`` are given. Durations are in seconds, sizes in bytes."""

    model_config = SettingsConfigDict(env_prefix=_ENV_PREFIX, frozen=True, extra="forbid")

    models: Annotated[tuple[ModelSource, ...], NoDecode] = ()
    model_repository: Path | None = None
    keep_versions: int = Field(default=2, ge=1, le=1000)
    watch_interval: float = Field(default=2.0, ge=0, le=3600)
    model_control: bool | None = None
    runtime: RuntimeName = "auto"
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)

    threads: int = Field(default_factory=available_cpus, ge=1, le=1024)
    decode_threads: int = Field(default_factory=available_cpus, ge=1, le=1024)
    concurrency: int = Field(default=1, ge=1, le=1024)
    max_batch: int = Field(default=32, ge=1, le=4096)
    max_delay: float = Field(default=0.0, ge=0, le=10)
    max_queue: int = Field(default=64, ge=1, le=100_000)
    timeout: float = Field(default=30.0, gt=0, le=3600)

    max_upload_bytes: int = Field(default=16 * 2**20, ge=1, le=2**31)
    max_pixels: int = Field(default=40_000_000, ge=1, le=1_000_000_000)
    max_images: int = Field(default=32, ge=1, le=4096)
    upload_timeout: float = Field(default=10.0, gt=0, le=3600)

    max_connections: int = Field(default=1000, ge=1, le=1_000_000)
    drain_delay: float = Field(default=0.0, ge=0, le=3600)
    drain_timeout: int = Field(default=30, ge=1, le=3600)
    api_key_file: Path | None = None

    @field_validator("models", mode="before")
    @classmethod
    def _parse_models(cls, value: Any) -> Any:
        """``CBN_MODELS`` and the command line give text: ``PATH`` or ``NAME=PATH``, several separated by commas."""
        texts = value.split(",") if isinstance(value, str) else value
        return tuple(ModelSource.parse(text.strip()) if isinstance(text, str) else text for text in texts)

    @field_validator("models")
    @classmethod
    def _names_differ(cls, models: tuple[ModelSource, ...]) -> tuple[ModelSource, ...]:
        names = [model.name for model in models]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two models are called {name!r}; write NAME=PATH to give each its own name")
        return models

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


def load_settings(**given: Any) -> ServingSettings:
    """Settings from arguments and environment; an argument that is ``None`` counts as not given.

    Raises:
        SettingsError: a value that is impossible, or no model.
    """
    try:
        return ServingSettings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "nothing_to_serve":
            raise SettingsError(
                "Say which model files to serve: cbn-serve MODEL.onnx, or --model-repository DIR."
            ) from error
        name = ".".join(map(str, first["loc"][:1])) or "settings"
        message = str(first["msg"]).removeprefix("Value error, ")
        raise SettingsError(
            f"--{name.replace('_', '-')} ({_ENV_PREFIX}{name.upper()}): {message}; see cbn-serve --help."
        ) from error
