"""What `cbn-train --compare` prints: a line a recipe, mean and spread over its seeds, and gains over the first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cbn_deploy.training.finished_runs import FIGURES, Row, Spread, find_runs, paired_gain, read_run, rows_of

__all__ = ["print_comparison"]

_TITLES = {"balanced_accuracy": "mean recall", "top1": "top-1", "ece": "ECE"}


def print_comparison(console: Console, folders: Sequence[Path]) -> tuple[Row, ...]:
    """The finished runs in or below ``folders``, which are returned.

    Raises:
        DataError: there are none, or they cannot be compared.
    """
    finished, unfinished = find_runs(folders)
    rows = rows_of([read_run(folder) for folder in finished])
    console.print(_table(rows))
    for line in [*_gains(rows), *_notes(rows, unfinished)]:
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    return rows


def _table(rows: Sequence[Row]) -> Table:
    table = Table(title="Last epoch, per cent", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("training", overflow="fold")
    table.add_column("seeds", justify="right", no_wrap=True)
    figures = _shown_figures(rows)
    for figure in figures:
        table.add_column(_TITLES.get(figure, figure), justify="right", no_wrap=True)
    for row in rows:
        table.add_row(escape(row.label), str(len(row.runs)), *(_text(row.spread(figure)) for figure in figures))
    return table


def _shown_figures(rows: Sequence[Row]) -> list[str]:
    """Without those that no run has (a data set may have no few-shot class), and without a second name for one."""
    tested = _test_images(rows)
    balanced = min(tested) == max(tested)  # then top-1 is the mean recall
    measured = [figure for figure in FIGURES if any(row.spread(figure) is not None for row in rows)]
    return [figure for figure in measured if not (balanced and figure == "top1")]


def _gains(rows: Sequence[Row]) -> list[str]:
    first, *others = rows
    lines = []
    for row in others:
        gain = paired_gain(row, first, "balanced_accuracy")
        if gain is not None:
            spread, above, pairs = gain
            text = f"{_text(spread, sign='+')} in mean recall, {above} of {pairs} above"
            lines.append(f"{row.label} over {first.label}, seed by seed: {text}")
    return lines


def _test_images(rows: Sequence[Row]) -> list[int]:
    return [images for _, _, images in rows[0].runs[0].data]


def _notes(rows: Sequence[Row], unfinished: Sequence[Path]) -> list[str]:
    tested = _test_images(rows)
    each = f"{min(tested)}" if min(tested) == max(tested) else f"{min(tested)} to {max(tested)}"
    notes = [f"{sum(tested)} test images, {each} a class; ± is the standard deviation over the seeds."]
    if any(len(row.runs) < 3 for row in rows):
        notes.append("Fewer than three seeds tell little: a seed alone can move a run by points.")
    if len({tuple(sorted(run.seeds for run in row.runs)) for row in rows}) > 1:
        notes.append("The rows do not have the same seeds; gains are those of the seeds that both have.")
    if unfinished:
        notes.append(f"Not finished, left out: {', '.join(map(str, unfinished))}")
    return notes


def _text(spread: Spread | None, sign: str = "") -> str:
    if spread is None:
        return "-"
    deviation = "" if spread.deviation is None else f" ±{100 * spread.deviation:.1f}"
    return f"{100 * spread.mean:{sign}.1f}{deviation}"
