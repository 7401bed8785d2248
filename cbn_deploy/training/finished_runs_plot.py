"""The picture of ``cbn-train --compare``: how the recipes learn, and which classes gain over the first of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from cbn_deploy.runtime.description import frequency_order
from cbn_deploy.training.finished_runs import Row, paired_recall_gains
from cbn_deploy.training.plot_style import GREY, INK, label_ticks, plot_style, rendered

__all__ = ["Curve", "curve_legend", "draw_comparison", "draw_curves", "mean_curve"]

Curve = Sequence[tuple[int, float]]
"""(epoch, fraction), epochs ascending."""

# Okabe and Ito's, the first recipe in grey: it is what the others are compared with.
_COLOURS = (GREY, "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", INK)
_MOST_BARS = 50


def draw_comparison(rows: Sequence[Row], kind: str = "png") -> bytes:
    """Top-1 over the epochs beside every class's gain in recall over the first row, most frequent class first.

    Thin lines and small dots are seeds, thick ones and bars their means. A gain is between two runs of one seed. Of
    more than 50 classes, neighbours in frequency are put together.

    Args:
        rows: on the same data; the first is the baseline.
        kind: "png", "svg" or "pdf".

    Returns:
        The file's content; the same figures give the same bytes.
    """
    with plot_style(**{"svg.hashsalt": "cbn-train"}):
        figure = Figure(figsize=(13, 4.8), layout="constrained")
        curves, gains = figure.subplots(1, 2, width_ratios=(1, 1.5))
        draw_curves(curves, [[run.top1 for run in row.runs] for row in rows])
        curves.set(title="Top-1 on the test images", xlabel="epoch")
        _draw_gains(gains, rows)
        figure.legend(
            handles=curve_legend([(row.label, len(row.runs)) for row in rows]), loc="outside lower left", fontsize=8.5
        )
        return rendered(figure, kind)


def draw_curves(axes: Any, groups: Sequence[Sequence[Curve]]) -> None:
    """A thick line a group, the mean at the epochs that all of its curves have, and a thin one for each curve."""
    for curves, colour in _coloured(groups):
        for curve in curves if len(curves) > 1 else ():
            axes.plot(*zip(*curve, strict=True), color=colour, linewidth=0.7, alpha=0.5)
        mean = mean_curve(curves)
        if mean:
            marker = "o" if len(mean) < 30 else None
            axes.plot(*zip(*mean, strict=True), color=colour, linewidth=2, marker=marker, markersize=3.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g}%"))


def curve_legend(rows: Iterable[tuple[str, int]]) -> list[Line2D]:
    """Handles for the groups of :func:`draw_curves`, from their names and numbers of seeds."""
    return [
        Line2D([], [], color=colour, linewidth=3, label=f"{name} ({seeds} seed{'s' * (seeds > 1)})")
        for (name, seeds), colour in _coloured(rows)
    ]


def mean_curve(curves: Sequence[Curve]) -> list[tuple[int, float]]:
    """The mean at every epoch that all of the curves have."""
    values = [dict(curve) for curve in curves]
    shared = sorted(set.intersection(*(set(each) for each in values)))
    return [(epoch, float(np.mean([each[epoch] for each in values]))) for epoch in shared]


def _draw_gains(axes: Any, rows: Sequence[Row]) -> None:
    base, *others = rows
    data = base.runs[0].data
    order = frequency_order([count for _, count, _ in data])
    bins = np.array_split(np.array(order), min(len(order), _MOST_BARS))
    found = [
        (gains, colour) for row, colour in _coloured(rows) if row is not base and len(gains := _binned(row, base, bins))
    ]
    title = f"Gain in recall over {base.label}" if others else "Gain in recall: there is one recipe only"
    if others and not found:
        title = "Gain in recall: no two recipes share a seed"
    width = 0.8 / max(len(found), 1)
    for number, (gains, colour) in enumerate(found):
        places = np.arange(len(bins)) + width * (number - (len(found) - 1) / 2)
        known = ~np.isnan(gains).all(axis=0)
        axes.bar(places[known], np.nanmean(gains[:, known], axis=0), width=width, color=colour, alpha=0.55)
        if len(gains) > 1:
            for seed in gains:
                axes.plot(places, seed, linestyle="", marker="o", markersize=3, color=colour)
    axes.axhline(0, color=INK, linewidth=1)
    axes.set_title(title, wrap=True)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:+.3g}" if value else "0"))
    axes.set_ylabel("points")
    label_ticks(axes, np.arange(len(bins)), [_tick(data, members) for members in bins])


def _binned(row: Row, base: Row, bins: Sequence[NDArray[np.int64]]) -> NDArray[np.float64]:
    """(pairs of seeds, bins): mean gain of the classes that have test images, NaN where none has."""
    gains = paired_recall_gains(row, base)
    columns = []
    for members in bins:
        tested = ~np.isnan(gains[:, members])
        total = np.where(tested, gains[:, members], 0.0).sum(axis=1)
        with np.errstate(invalid="ignore"):
            columns.append(total / tested.sum(axis=1))
    return np.stack(columns, axis=1)


def _tick(data: Sequence[tuple[str, int, int]], members: NDArray[np.int64]) -> str:
    name, most, _ = data[members[0]]
    if len(members) == 1:
        return f"{name}\n{most}"
    return f"{most}-{data[members[-1]][1]}"


def _coloured(things: Iterable[Any]) -> Iterator[tuple[Any, str]]:
    for number, thing in enumerate(things):
        yield thing, _COLOURS[number % len(_COLOURS)]
