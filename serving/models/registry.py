"""The models by name and version."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from cbn_deploy.errors import ModelFileError
from cbn_deploy.runtime.factory import open_session
from serving.batching import Batcher
from serving.errors import ApiError
from serving.inference import InferencePool
from serving.models.served import ServedModel
from serving.models.state import ModelState
from serving.models.statistics import ModelStatistics
from serving.settings import ModelSource, ServingSettings

__all__ = ["ModelRegistry"]

_FIRST_VERSION = "1"


class ModelRegistry:
    """Models by name. Loading runs each once, so what is listed is known to answer."""

    def __init__(self, settings: ServingSettings, pool: InferencePool) -> None:
        self._settings, self._pool = settings, pool
        self._sources = {source.name: source for source in settings.models}
        self._models = {name: self._load(source) for name, source in self._sources.items()}

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._models.values())

    def get(self, name: str | None, version: str | None = None) -> ServedModel:
        """The version ``version`` of the model called ``name``; by default the newest one of the only model.

        Raises:
            ApiError: 404, no such model or version; 422, no name although there are several.
        """
        if name is None:
            if len(self._models) > 1:
                raise ApiError(422, f"model: there are several, name one of {', '.join(self._models)}.")
            return next(iter(self._models.values()))
        if name not in self._models:
            raise ApiError(404, f"There is no model {name[:80]!r}; there is {', '.join(self._models)}.")
        model = self._models[name]
        if version not in (None, "", model.version):
            raise ApiError(404, f"{name} has no version {version[:20]!r}; there is {model.version}.")
        return model

    def index(self) -> list[ModelState]:
        """Every version, and what has become of it."""
        return [ModelState(name=model.name, version=model.version, state="READY", reason="") for model in self]

    async def load(self, name: str) -> None:
        """Load the model called ``name`` from its file again; the present one answers until then, or if that fails.

        Raises:
            ApiError: 404, no such model; 422, its file cannot be served.
        """
        if name not in self._sources:
            raise ApiError(404, f"There is no model {name[:80]!r}; there is {', '.join(self._sources)}.")
        try:
            self._models[name] = await self._pool.run(lambda: self._load(self._sources[name]))
        except ModelFileError as error:
            raise ApiError(422, str(error)) from error

    async def unload(self, name: str) -> None:
        """Take the model called ``name`` away; requests that have it finish.

        Raises:
            ApiError: 404, no such model.
        """
        del self._models[self.get(name).name]

    def _load(self, source: ModelSource) -> ServedModel:
        session = open_session(source.path, self._settings.runtime, self._settings.threads)
        size = session.description.preprocessing
        # A batch of two: a batch of one would not notice a graph whose batch dimension is fixed inside.
        trial = session.run(np.zeros((2, 3, size.height, size.width), dtype=np.float32))
        if trial.logits.shape != (2, len(session.description.class_names)) or not np.isfinite(trial.logits).all():
            raise ModelFileError(
                f"{source.path} answers a blank image with no finite logits; train or export it again."
            )
        statistics = ModelStatistics()
        return ServedModel(
            name=source.name,
            version=_FIRST_VERSION,
            description=session.description,
            info=session.describe(),
            components={layer: posterior.shape[1] for layer, posterior in trial.posteriors.items()},
            batcher=Batcher(
                session,
                self._pool,
                max_batch=self._settings.max_batch,
                max_delay=self._settings.max_delay,
                max_queue=self._settings.max_queue,
                on_batch=statistics.count_batch,
            ),
            statistics=statistics,
        )

    def close(self) -> None:
        """Release every model."""
        self._models.clear()
