"""A folder of images in, a table of predictions out: threads decode ahead of the model, parts are kept as they come."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cbn_deploy import __version__
from cbn_deploy.atomic import check_writable
from cbn_deploy.calibrated_file import description_digest
from cbn_deploy.errors import DataError, ImageError, ImageTooLargeError, OutputError
from cbn_deploy.prediction.classifier import Classifier, ImagePrediction, PredictionOptions, Prepared
from cbn_deploy.prediction.image_names import image_names, image_root, read_image
from cbn_deploy.prediction.parts import PartsFolder
from cbn_deploy.prediction.table import table_format
from cbn_deploy.runtime.factory import RuntimeName, available_cpus, open_session

__all__ = ["PredictionRun", "predict_images"]

Progress = Callable[[int, int], None]
Numbered = tuple[int, str]

# A part is written when it has this many rows, or this many labels, or is this many seconds old: what a kill costs.
_PART_ROWS = 4096
_PART_LABELS = 1_000_000
_PART_SECONDS = 30.0
# Batches that are decoded while one is in the model.
_AHEAD = 2


@dataclass(frozen=True, kw_only=True)
class PredictionRun:
    """What came of a run.

    Attributes:
        path: the table.
        images: rows of it.
        resumed: rows that an earlier, unfinished run had left.
        errors: rows with an error, of those that this run has added.
        first_error: of one of these, as "name: sentence".
        seconds: from opening the model to the finished table.
    """

    path: Path
    images: int
    resumed: int
    errors: int
    first_error: str | None
    seconds: float


def predict_images(
    model: Path,
    source: Path,
    output: Path,
    options: PredictionOptions | None = None,
    *,
    batch_size: int = 32,
    threads: int | None = None,
    runtime: RuntimeName = "auto",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> PredictionRun:
    """Classify the images of ``source`` into the table ``output``, a .parquet, .csv or .jsonl.

    Whatever ends the run, what is done is kept in ``output.parts``; the same call goes on with it. Rows are in the
    order of :func:`image_names`, one an image. A changed model or other options are refused then. The images are those
    that were there when the first of these calls began. At most 3 * ``batch_size`` decoded images are held in memory.

    Args:
        model: a model file.
        source: a folder of images, or a text file with the path of one a line.
        output: the table to write.
        options: what is asked of every image.
        batch_size: images a run of the model.
        threads: that decode, and that share one run of the model; ``None``: all CPUs.
        runtime: see :func:`open_session`.
        overwrite: replace a finished table.
        progress: called with (images done, images in all).

    Raises:
        CbnError: the model, the images as a whole or the table; never a single image.
        KeyboardInterrupt: Ctrl-C, after what is done was kept.
    """
    options = options or PredictionOptions()
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    started = time.perf_counter()
    root, parts = image_root(source), _open_parts(output, overwrite)
    threads = threads or available_cpus()
    # Threads that spin would take the CPUs that decoding needs.
    with open_session(model, runtime, threads, spin=False) as session:
        classifier = Classifier(session, options)
        plan = _plan(model, source, options)
        with parts:
            count = _begin_or_go_on(parts, plan, source)
            done = parts.done()
            writer = _Writer(parts, options.top_k, sum(end - begin for begin, end in done), count, progress)
            with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
                todo = _batches(_not_done(parts.names(), done), batch_size)
                prepared = _prepared(todo, pool, lambda name: _prepare(root / name, classifier, options))
                try:
                    writer.write(prepared, classifier)
                finally:
                    pool.shutdown(cancel_futures=True)
            parts.finish({f"cbn.{key}": str(value) for key, value in {**plan, "version": __version__}.items()})
    return PredictionRun(
        path=output,
        images=count,
        resumed=writer.resumed,
        errors=writer.errors,
        first_error=writer.first_error,
        seconds=time.perf_counter() - started,
    )


def _open_parts(output: Path, overwrite: bool) -> PartsFolder:
    if output.is_dir():
        raise OutputError(f"{output} is a folder; give the name of the table to write.")
    parts = PartsFolder(output, table_format(output))
    if output.exists() and not overwrite and not parts.begun:
        raise OutputError(f"{output} exists already; choose another name, or replace it with --overwrite.")
    check_writable(output.parent)
    return parts


def _plan(model: Path, source: Path, options: PredictionOptions) -> dict[str, Any]:
    """What must not change while a table is made."""
    return {
        # Of the JSON beside an engine, which has the temperature, and the digest of the engine as well.
        "model": description_digest(model),
        "source": str(source.resolve()),
        "top_k": options.top_k,
        "prior": options.prior,
        "max_bytes": options.limits.max_bytes,
        "max_pixels": options.limits.max_pixels,
    }


def _begin_or_go_on(parts: PartsFolder, plan: dict[str, Any], source: Path) -> int:
    """The number of images."""
    if not parts.begun:
        count = parts.begin(plan, image_names(source))
        if not count:
            raise DataError(f"{source} holds no images (.jpg, .jpeg, .png, .webp, .bmp); give another folder or list.")
        return count
    known = parts.plan()
    changed = [key for key in plan if known.get(key) != plan[key]]
    if changed:
        raise OutputError(
            f"{parts.path} is of an unfinished run with another {' and '.join(changed).replace('_', '-')}; "
            "finish that one with its own options, or delete the folder to start anew."
        )
    return int(known["images"])


def _not_done(names: Iterable[str], done: list[tuple[int, int]]) -> Iterator[Numbered]:
    ranges = deque(done)
    for number, name in enumerate(names):
        while ranges and ranges[0][1] <= number:
            ranges.popleft()
        if not ranges or number < ranges[0][0]:
            yield number, name


def _batches(numbered: Iterable[Numbered], size: int) -> Iterator[list[Numbered]]:
    """At most ``size`` consecutive images each."""
    batch: list[Numbered] = []
    for item in numbered:
        if batch and (len(batch) == size or item[0] != batch[-1][0] + 1):
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


def _prepared(
    batches: Iterable[list[Numbered]], pool: ThreadPoolExecutor, prepare: Callable[[str], Prepared]
) -> Iterator[tuple[list[Numbered], list[Prepared]]]:
    """The batches in order, decoded; two more are being decoded meanwhile."""
    ahead: deque[tuple[list[Numbered], list[Future[Prepared]]]] = deque()
    for batch in batches:
        ahead.append((batch, [pool.submit(prepare, name) for _, name in batch]))
        if len(ahead) > _AHEAD:
            yield _wait(*ahead.popleft())
    while ahead:
        yield _wait(*ahead.popleft())


def _wait(batch: list[Numbered], futures: list[Future[Prepared]]) -> tuple[list[Numbered], list[Prepared]]:
    return batch, [future.result() for future in futures]


def _prepare(path: Path, classifier: Classifier, options: PredictionOptions) -> Prepared:
    try:
        return classifier.prepare(read_image(path, options.limits.max_bytes))
    except ImageError as error:
        return error
    except MemoryError:
        return ImageTooLargeError("The image needs more memory than there is.")


@dataclass
class _Part:
    begin: int
    rows: list[ImagePrediction] = field(default_factory=list)
    opened: float = field(default_factory=time.monotonic)


class _Writer:
    """Collects rows and keeps them in parts; counts."""

    def __init__(self, parts: PartsFolder, top_k: int, resumed: int, count: int, progress: Progress | None) -> None:
        self._parts, self._count, self._progress = parts, count, progress
        self._most_rows = max(1, min(_PART_ROWS, _PART_LABELS // top_k))
        self._part = _Part(0)
        self.resumed = self._done = resumed
        self.errors = 0
        self.first_error: str | None = None
        self._report()

    def write(self, batches: Iterator[tuple[list[Numbered], list[Prepared]]], classifier: Classifier) -> None:
        """Classify all; what is done by then is kept if anything but the disk fails, Ctrl-C included."""
        try:
            for batch, prepared in batches:
                self._take(batch[0][0], classifier.answer([name for _, name in batch], prepared))
        except OutputError:
            raise
        except BaseException:
            self._keep()
            raise
        self._keep()

    def _take(self, begin: int, rows: list[ImagePrediction]) -> None:
        part = self._part
        if begin != part.begin + len(part.rows):
            self._keep()
            self._part = part = _Part(begin)
        part.rows.extend(rows)
        for row in rows:
            if row.error is not None:
                self.errors += 1
                self.first_error = self.first_error or f"{row.image}: {row.error}"
        self._done += len(rows)
        if len(part.rows) >= self._most_rows or time.monotonic() - part.opened > _PART_SECONDS:
            self._keep()
        self._report()

    def _keep(self) -> None:
        part = self._part
        if part.rows:
            self._parts.add(part.begin, part.rows)
            # In one step: an interruption before it writes the same part again, one after it nothing.
            self._part = _Part(part.begin + len(part.rows))

    def _report(self) -> None:
        if self._progress is not None:
            self._progress(self._done, self._count)
