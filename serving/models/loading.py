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
        CbnError: the file cannot be opened, gives no finite logits, or not those that were exported.
    """
    # Threads that spin would make a run cost 60 % more of the CPUs that decoding and the event loop need.
    session = open_session(file.path, settings.runtime, settings.threads, spin=False)
    try:
        trial = _prove(session, settings.max_batch)
    except CbnError:
        session.close()
        raise
    except Exception as error:  # runtimes raise what they like
        session.close()
        reason = " ".join(str(error).split())
        raise ModelFileError(f"{file.path} can be loaded but not run ({reason}); export it again.") from error
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
    for logits in (np.concatenate([single.logits for single in singles]), full.logits):
        _require_finite(session, logits)
    if expected is not None:
        expected.check(np.concatenate([single.logits for single in singles]))
        if max_batch >= len(images):
            expected.check(full.logits[: len(images)])
    return singles[0]


def _require_finite(session: Session, logits: NDArray[np.float32]) -> None:
    if logits.shape[1:] != (len(session.description.class_names),) or not np.isfinite(logits).all():
        raise ModelFileError(
            f"{session.describe().file} answers an ordinary image with no finite logits; train or export it again."
        )
