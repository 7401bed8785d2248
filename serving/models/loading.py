"""From a model file to a version that has proved that it can answer."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from cbn_deploy.errors import CbnError, ModelFileError
from cbn_deploy.runtime import Prediction, Session
from cbn_deploy.runtime.factory import open_session
from cbn_deploy.runtime.self_test import SelfTest, self_test_images
from serving.batching import Batcher, BatchRecord
from serving.inference import InferencePool
from serving.models.files import ModelFile
from serving.models.served import ServedModel
from serving.models.statistics import ModelStatistics
from serving.settings import ServingSettings
from serving.traffic import RecentTraffic

__all__ = ["OnBatch", "load_model"]

OnBatch = Callable[[str, BatchRecord], None]


def load_model(file: ModelFile, settings: ServingSettings, pool: InferencePool, on_batch: OnBatch) -> ServedModel:
    """Open ``file``, run it with one image and with ``max_batch``, and hold its answers against its self-test.

    The session is closed when nobody holds the model any more.

    Raises:
        CbnError: the file cannot be opened, gives no finite logits, not those that were exported, or posteriors that
            are none.
    """
    # Threads that spin would make a run cost 60 % more of the CPUs that decoding and the event loop need.
    session = open_session(file.path, settings.runtime, settings.threads, spin=False)
    try:
        return _served(file, session, _prove(session, settings.max_batch), settings, pool, on_batch)
    except CbnError:
        session.close()
        raise
    except Exception as error:  # runtimes raise what they like
        session.close()
        reason = " ".join(str(error).split())
        raise ModelFileError(f"{file.path} can be loaded but not run ({reason}); export it again.") from error


def _served(
    file: ModelFile,
    session: Session,
    trial: Prediction,
    settings: ServingSettings,
    pool: InferencePool,
    on_batch: OnBatch,
) -> ServedModel:
    statistics = ModelStatistics()

    def count(record: BatchRecord) -> None:
        statistics.count_batch(record)
        on_batch(file.name, record)

    model = ServedModel(
        name=file.name,
        version=str(file.version),
        description=session.description,
        info=session.describe(),
        components={layer: posterior.shape[1] for layer, posterior in trial.posteriors.items()},
        batcher=Batcher(
            session,
            pool,
            max_batch=settings.max_batch,
            max_delay=settings.max_delay,
            max_queue=settings.max_queue,
            on_batch=count,
        ),
        statistics=statistics,
        traffic=RecentTraffic(session.description),
    )
    weakref.finalize(model, session.close)
    return model


def _prove(session: Session, max_batch: int) -> Prediction:
    """Run single images and a full batch; both must give what the file says, if it says anything."""
    images = self_test_images(session.description.preprocessing)
    # On another device than a CPU float32 may mean TensorFloat-32, whose deviation no export has measured.
    expected = SelfTest.of(session.description) if session.describe().device == "cpu" else None
    singles = [session.run(images[index : index + 1]) for index in range(len(images))]
    full = session.run(np.resize(images, (max_batch, *images.shape[1:])))
    for prediction, batch in (*((single, 1) for single in singles), (full, max_batch)):
        _require_finite(session, prediction.logits, batch)
        _require_posteriors(session, prediction, singles[0])
    if expected is not None:
        expected.check(np.concatenate([single.logits for single in singles]))
        if max_batch >= len(images):
            expected.check(full.logits[: len(images)])
    return singles[0]


def _require_finite(session: Session, logits: NDArray[np.float32], batch: int) -> None:
    if logits.shape != (batch, len(session.description.class_names)) or not np.isfinite(logits).all():
        raise ModelFileError(
            f"{session.describe().file} answers an ordinary image with no finite logits; train or export it again."
        )


def _require_posteriors(session: Session, prediction: Prediction, first: Prediction) -> None:
    """Demand float32 (B, M, height, width), B that of the logits, the rest as in the ``first`` prediction."""
    for layer, posterior in prediction.posteriors.items():
        shape = (len(prediction.logits), *first.posteriors[layer].shape[1:])
        if posterior.dtype != np.float32 or posterior.shape != shape or posterior.ndim != 4 or posterior.size == 0:
            raise ModelFileError(
                f"{session.describe().file} gives a posterior of {layer} that is {posterior.dtype} of shape "
                f"{posterior.shape} for {len(prediction.logits)} images, not float32 (images, M, height, width); "
                "export it again."
            )
