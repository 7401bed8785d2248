"""The same over Ray Data: a data set of image files in, a data set of predictions out, a model a worker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cbn_deploy.errors import ImageError
from cbn_deploy.prediction.classifier import Classifier, PredictionOptions, Prepared
from cbn_deploy.prediction.table import rows_to_arrow
from cbn_deploy.runtime.factory import RuntimeName, open_session

__all__ = ["predict_dataset"]


def predict_dataset(
    dataset: Any,
    model: Path | str,
    options: PredictionOptions | None = None,
    *,
    workers: int | tuple[int, int] = 1,
    threads: int = 1,
    batch_size: int = 32,
    runtime: RuntimeName = "auto",
) -> Any:
    """Classify a ``ray.data.Dataset`` of image files, lazily, as Ray Data works.

    Args:
        dataset: with the columns "path" and "bytes", as ``ray.data.read_binary_files(folder, include_paths=True)``
            gives it.
        model: a model file, at this path on every node.
        options: what is asked of every image.
        workers: actors, each of which opens the model once: their number, or the least and the most of them.
        threads: CPUs of a worker.
        batch_size: images a run of the model.
        runtime: see :func:`cbn_deploy.runtime.factory.open_session`.

    Returns:
        A ``ray.data.Dataset`` with the columns of :class:`cbn_deploy.prediction.classifier.ImagePrediction`; ``image``
        is the path. What cannot be read of the files themselves is Ray's error; what cannot be decoded is a row.
    """
    import ray.data

    least, most = (workers, workers) if isinstance(workers, int) else workers
    return dataset.map_batches(
        _Worker,
        fn_constructor_args=(str(Path(model).resolve()), options or PredictionOptions(), threads, runtime),
        batch_size=batch_size,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(min_size=least, max_size=most),
        num_cpus=threads,
    )


class _Worker:
    """Runs in an actor of Ray."""

    def __init__(self, model: str, options: PredictionOptions, threads: int, runtime: RuntimeName) -> None:
        self._classifier = Classifier(open_session(model, runtime, threads), options)

    def __call__(self, batch: Any) -> Any:
        """A ``pyarrow.Table`` of files, as one of predictions."""
        files = batch.column("bytes").to_pylist()
        return rows_to_arrow(self._classifier.answer(batch.column("path").to_pylist(), list(map(self._prepare, files))))

    def _prepare(self, content: bytes) -> Prepared:
        try:
            return self._classifier.prepare(content)
        except ImageError as error:
            return error
