"""Finished runs beside one another: the seeds of one recipe put together, the recipes told apart by what differs."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbn_deploy.errors import CbnError, DataError
from cbn_deploy.training.folder import RunFolder
from cbn_deploy.training.recipe import Recipe, as_typed

__all__ = [
    "FIGURES",
    "Finished",
    "Row",
    "Spread",
    "find_runs",
    "paired_gain",
    "paired_recall_gains",
    "read_run",
    "rows_of",
]

FIGURES = ("balanced_accuracy", "top1", "many", "medium", "few", "ece")
"""What is compared: keys of a report's ``evaluation``."""


@dataclass(frozen=True, kw_only=True)
class Finished:
    """One run's report.

    Attributes:
        folder: where it lies.
        settings: dotted key -> value of what its recipe does, seeds and what changes no result left out.
        seeds: (``seed``, ``data.seed``).
        data: class names, training counts and test images of each class.
        figures: of :data:`FIGURES`, fractions; ``None`` where there was nothing to measure.
        recalls: of the K classes; ``None`` where a class has no test images.
        top1: (epoch, fraction) of every epoch that was judged.
    """

    folder: Path
    settings: Mapping[str, Any]
    seeds: tuple[int, int]
    data: tuple[tuple[str, int, int], ...]
    figures: Mapping[str, float | None]
    recalls: tuple[float | None, ...]
    top1: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Spread:
    """Mean and, of two values or more, their sample standard deviation."""

    mean: float
    deviation: float | None


@dataclass(frozen=True, kw_only=True)
class Row:
    """The runs of one recipe. ``label`` is what it has that other rows have differently, ``key=value``s."""

    label: str
    runs: tuple[Finished, ...]

    def spread(self, figure: str) -> Spread | None:
        """Over the runs; ``None`` where none of them has the figure."""
        return _spread([value for run in self.runs if (value := run.figures[figure]) is not None])


def find_runs(folders: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """The run folders in or below ``folders``: those with a report, and those that are not finished, by name.

    Raises:
        DataError: one of the folders is none, or there is no finished run.
    """
    found: set[RunFolder] = set()
    for folder in folders:
        if not folder.is_dir():
            raise DataError(f"{folder} is not a folder; name run folders of cbn-train, or one that holds them.")
        found |= RunFolder.below(folder)
    finished = {run for run in found if run.report_json.is_file()}
    if not finished:
        raise DataError("There is no finished run to compare; cbn-train leaves a report.json in its --out.")
    return sorted(run.path for run in finished), sorted(run.path for run in found - finished)


def read_run(folder: Path) -> Finished:
    """What ``folder/report.json`` says.

    Raises:
        DataError: it cannot be read or is no report of this version's cbn-train.
    """
    path = RunFolder(folder).report_json
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        recipe, evaluation = Recipe.from_dict(report["recipe"]), report["evaluation"]
        tested = evaluation["per_class_images"]
        if not tested:
            raise ValueError("it has no classes")
        return Finished(
            folder=folder,
            settings={key: value for key, value in recipe.experiment().items() if key != "data.seed"},
            seeds=(recipe.seed, recipe.data.seed),
            data=tuple(
                (str(row["name"]), int(row["training_images"]), int(images))
                for row, images in zip(report["classes"], tested, strict=True)
            ),
            figures={key: _number(evaluation[key]) for key in FIGURES},
            recalls=tuple(_number(recall) for recall, _ in zip(evaluation["per_class"], tested, strict=True)),
            top1=tuple(
                (int(row["epoch"]), top1) for row in report["history"] if (top1 := _number(row["top1"])) is not None
            ),
        )
    # A recipe part that is null has no attributes, and no whole number is infinity.
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, CbnError) as error:
        reason = f"{type(error).__name__}: {error}".rstrip(".")
        raise DataError(f"{path} is no report of this version ({reason}); leave that run out.") from error


def rows_of(runs: Sequence[Finished]) -> tuple[Row, ...]:
    """One row a recipe, batch-norm networks first, else in the order of ``runs``.

    Raises:
        DataError: runs on different data, or the same run twice.
    """
    groups: dict[str, list[Finished]] = {}
    for run in runs:
        if run.data != runs[0].data:
            raise DataError(
                f"{runs[0].folder} and {run.folder} are not on the same data (other classes or numbers of images), so "
                "their figures cannot be compared; name runs on one data set."
            )
        same = groups.setdefault(json.dumps(run.settings, sort_keys=True), [])
        twin = next((other for other in same if other.seeds == run.seeds), None)
        if twin is not None:
            raise DataError(f"{twin.folder} and {run.folder} are the same run, settings and seed; leave one out.")
        same.append(run)
    ordered = sorted(groups.values(), key=lambda group: not str(group[0].settings["model"]).endswith("-bn"))
    settings = [group[0].settings for group in ordered]
    return tuple(Row(label=_label(group[0].settings, settings), runs=tuple(group)) for group in ordered)


def paired_gain(row: Row, base: Row, figure: str) -> tuple[Spread, int, int] | None:
    """``row`` minus ``base``, seed by seed: the differences' spread, how many are above 0, and how many there are.

    ``None`` where no seed is in both.
    """
    gains = [
        mine - theirs
        for ours, other in _pairs(row, base)
        if (mine := ours.figures[figure]) is not None and (theirs := other.figures[figure]) is not None
    ]
    spread = _spread(gains)
    return None if spread is None else (spread, sum(gain > 0 for gain in gains), len(gains))


def paired_recall_gains(row: Row, base: Row) -> NDArray[np.float64]:
    """(pairs, K): the recalls of ``row`` minus those of ``base``, seed by seed; NaN for a class without test images."""
    gains = [
        np.array(ours.recalls, dtype=np.float64) - np.array(other.recalls, dtype=np.float64)
        for ours, other in _pairs(row, base)
    ]
    return np.stack(gains) if gains else np.empty((0, len(base.runs[0].data)))


def _pairs(row: Row, base: Row) -> list[tuple[Finished, Finished]]:
    of_base = {run.seeds: run for run in base.runs}
    return [(run, of_base[run.seeds]) for run in row.runs if run.seeds in of_base]


def _label(own: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    differing = [key for key, value in own.items() if any(row.get(key, value) != value for row in rows)]
    return ", ".join(f"{as_typed(key)}={own[key]}" for key in differing) or str(own["model"])


def _number(value: Any) -> float | None:
    if value is None:
        return None
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{number} is no figure")
    return number


def _spread(values: Sequence[float]) -> Spread | None:
    if not values:
        return None
    return Spread(statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None)
