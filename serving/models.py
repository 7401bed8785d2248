"""The models that are being served: name -> loaded, tried session."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from cbn_deploy.errors import ModelFileError
from cbn_deploy.runtime import ModelDescription, Session, SessionInfo
from cbn_deploy.runtime.factory import RuntimeName, open_session
from serving.errors import ApiError
from serving.settings import ModelSource

__all__ = ["ModelRegistry", "ServedModel"]


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """A loaded model.

    Attributes:
        name: what clients call it.
        session: what runs it.
        info: runtime, kernel path and threads of the session.
        components: layer name -> M, for the layers whose posteriors the file returns; empty without --with-posterior.
    """

    name: str
    session: Session
    info: SessionInfo
    components: Mapping[str, int]

    @property
    def description(self) -> ModelDescription:
        """What the model file says about itself."""
        return self.session.description


class ModelRegistry:
    """Models by name. Loading runs each once, so what is listed is known to answer."""

    def __init__(self, sources: Iterable[ModelSource], runtime: RuntimeName, threads: int) -> None:
        self._models = {source.name: _load(source, runtime, threads) for source in sources}

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._models.values())

    def get(self, name: str | None) -> ServedModel:
        """The model called ``name``, or the only one.

        Raises:
            ApiError: 404, no such model; 422, no name although there are several.
        """
        if name is None:
            if len(self._models) > 1:
                raise ApiError(422, f"model: there are several, name one of {', '.join(self._models)}.")
            return next(iter(self._models.values()))
        if name not in self._models:
            raise ApiError(404, f"There is no model {name[:80]!r}; there is {', '.join(self._models)}.")
        return self._models[name]

    def close(self) -> None:
        """Release every model."""
        for model in self:
            model.session.close()


def _load(source: ModelSource, runtime: RuntimeName, threads: int) -> ServedModel:
    session = open_session(source.path, runtime, threads)
    size = session.description.preprocessing
    # A batch of two: a batch of one would not notice a graph whose batch dimension is fixed inside.
    trial = session.run(np.zeros((2, 3, size.height, size.width), dtype=np.float32))
    if trial.logits.shape != (2, len(session.description.class_names)) or not np.isfinite(trial.logits).all():
        raise ModelFileError(f"{source.path} answers a blank image with no finite logits; train or export it again.")
    return ServedModel(
        name=source.name,
        session=session,
        info=session.describe(),
        components={layer: posterior.shape[1] for layer, posterior in trial.posteriors.items()},
    )
