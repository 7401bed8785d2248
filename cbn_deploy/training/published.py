"""What the paper's tables print, for its own method and its competitors: read from ``published.json``."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from importlib import resources
from typing import Any

__all__ = ["PublishedResult", "per_cent_as_printed", "published_results"]

_MEASURES = ("top1", "many", "medium", "few")


@dataclass(frozen=True, kw_only=True)
class PublishedResult:
    """One figure of one table; fractions, ``None`` where the table has none.

    Attributes:
        data: data set and imbalance, such as "cifar10-lt/rho100".
        source: "Table 2".
        method: the row's name.
        experiment: name of the recipe that repeats it, or ``None`` (the competitors).
        top1: accuracy on the test set.
        many: mean recall of the classes with more than 100 training images.
        medium: 20 to 100.
        few: fewer than 20.
    """

    data: str
    source: str
    method: str
    experiment: str | None
    top1: float
    many: float | None = None
    medium: float | None = None
    few: float | None = None


@functools.cache
def published_results() -> tuple[PublishedResult, ...]:
    """Every figure of the file, in its order."""
    text = resources.files("cbn_deploy.training").joinpath("published.json").read_text("utf-8")
    return tuple(
        _result(table["source"], row, data, column)
        for table in json.loads(text)["tables"]
        for row in table["rows"]
        for column, data in enumerate(table["data"])
        if row["top1"][column] is not None
    )


def per_cent_as_printed(fraction: float) -> str:
    """0.8498 -> "84.98", 0.85 -> "85.0": the paper's tables have one digit or two."""
    return f"{100 * fraction:.2f}".removesuffix("0")


def _result(source: str, row: dict[str, Any], data: str, column: int) -> PublishedResult:
    figures = {name: round(float(row[name][column]) / 100, 6) for name in _MEASURES if name in row}
    experiment = f"{data}/{row['experiment']}" if "experiment" in row else None
    return PublishedResult(data=data, source=source, method=str(row["method"]), experiment=experiment, **figures)
