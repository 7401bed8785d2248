"""The same application on Ray Serve: ``serve run serving.ray:app models=model.onnx max_replicas=8``.

A replica is a process with all that ``cbn-serve`` has but the listening socket: models loaded once, its own batching,
limits and readiness. Ray's proxies take the requests and its controller adds replicas as requests queue up.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from ray import serve
from ray.serve import Application

from cbn_deploy.errors import SettingsError
from serving.app import create_app
from serving.settings import ServingSettings, load_settings

__all__ = ["Scaling", "app"]


class Scaling(BaseModel):
    """How many replicas there are, and how large one is.

    Attributes:
        min_replicas: the least.
        max_replicas: the most.
        target_ongoing_requests: requests in progress or waiting, a replica, that Ray aims at by adding replicas.
        upscale_delay_s: seconds of too many requests before replicas are added.
        downscale_delay_s: seconds of too few before they are taken away.
        cpus: that Ray reserves for a replica, and the threads of its inference and of its decoding unless those are
            given.
        gpus: that Ray reserves for a replica.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_replicas: int = Field(default=1, ge=1)
    max_replicas: int = Field(default=4, ge=1)
    target_ongoing_requests: float = Field(default=8.0, gt=0)
    upscale_delay_s: float = Field(default=10.0, ge=0)
    downscale_delay_s: float = Field(default=300.0, ge=0)
    cpus: float = Field(default=1.0, gt=0)
    gpus: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _ascending(self) -> Scaling:
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas ({self.max_replicas}) is below min_replicas ({self.min_replicas})")
        return self


class _Replica:
    """What a deployment adds to the application that it wraps, which Ray calls ``app``."""

    app: FastAPI

    async def check_health(self) -> None:
        """Ray asks now and then; a replica that raises is replaced."""
        if reason := self.app.state.services.not_ready():
            raise RuntimeError(reason)

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):  # the application could not be built
            self.app.state.services.close()


def app(arguments: Mapping[str, Any]) -> Application:
    """The application, for ``serve run``, ``serve build`` and ``serve.run``.

    Args:
        arguments: fields of :class:`Scaling`, and settings of ``cbn-serve`` by name (``models``, ``max_batch``, ...);
            text, as a command line gives it, or values. ``CBN_*`` variables count where this is called. Files are
            looked for at the same absolute path on every node. Host, port, TLS and connections are Ray's own matter.

    Raises:
        SettingsError: an argument that is impossible or unknown.
    """
    scaling, settings = _read(arguments)

    def build() -> FastAPI:  # in the replica's process
        return create_app(settings)

    deployment = serve.deployment(
        name="cbn-serve",
        ray_actor_options={"num_cpus": scaling.cpus, "num_gpus": scaling.gpus},
        autoscaling_config={
            "min_replicas": scaling.min_replicas,
            "max_replicas": scaling.max_replicas,
            "target_ongoing_requests": scaling.target_ongoing_requests,
            "upscale_delay_s": scaling.upscale_delay_s,
            "downscale_delay_s": scaling.downscale_delay_s,
        },
        # As many as a replica itself admits, so that its own 503 says when to come back; Ray's answer beyond that.
        max_ongoing_requests=settings.max_queue,
        max_queued_requests=settings.max_queue,
        graceful_shutdown_timeout_s=settings.drain_timeout,
    )
    application: Application = deployment(serve.ingress(build)(_Replica)).bind()
    return application


def _read(arguments: Mapping[str, Any]) -> tuple[Scaling, ServingSettings]:
    own = {name: value for name, value in arguments.items() if name in Scaling.model_fields}
    others = {name: value for name, value in arguments.items() if name not in own}
    unknown = sorted(others.keys() - ServingSettings.model_fields.keys() - {"config"})
    if unknown:
        raise SettingsError(
            f"{unknown[0]!r} is neither a setting of cbn-serve nor one of {', '.join(Scaling.model_fields)}."
        )
    try:
        scaling = Scaling.model_validate(own)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"])) or "replicas"
        raise SettingsError(f"{name}: {str(first['msg']).removeprefix('Value error, ')}.") from error
    # The machine that builds the application need not be like those that run it.
    threads = max(1, int(scaling.cpus))
    settings = load_settings(**{"threads": threads, "decode_threads": threads, **others})
    if settings.only_this_machine_controls:  # what Ray's proxy passes on may be anybody's
        settings = settings.model_copy(update={"model_control": False})
    return scaling, _with_absolute_paths(settings)


def _with_absolute_paths(settings: ServingSettings) -> ServingSettings:
    models = tuple(model.model_copy(update={"path": model.path.resolve()}) for model in settings.models)
    repository = settings.model_repository and settings.model_repository.resolve()
    keys = settings.api_key_file and settings.api_key_file.resolve()
    return settings.model_copy(update={"models": models, "model_repository": repository, "api_key_file": keys})
