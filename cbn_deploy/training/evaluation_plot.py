"""The picture of ``cbn-eval --plot``: are confidences honest, and which classes are recognised, how surely?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter

from cbn_deploy.runtime import ModelDescription, shot_group
from cbn_deploy.runtime.description import frequency_order
from cbn_deploy.training.metrics import Reliability
from cbn_deploy.training.model_evaluation import ModelEvaluation
from cbn_deploy.training.plot_style import (
    GREY,
    GROUP_COLOURS,
    GROUP_MEANING,
    HALO,
    INK,
    label_ticks,
    plot_style,
    rendered,
)

__all__ = ["draw_evaluation"]

_NUMBERED_CLASSES = 20
_BEFORE, _AFTER = "#D55E00", "#0072B2"


def draw_evaluation(result: ModelEvaluation, description: ModelDescription, title: str, kind: str = "png") -> bytes:
    """The reliability diagram beside the recall of every class, most frequent first, with its 95 % interval.

    With a calibration both diagrams of its held-out half are drawn, at T = 1 and at T.

    Args:
        result: what was measured.
        description: the model's classes and their training counts.
        title: over the picture.
        kind: "png", "svg" or "pdf".

    Returns:
        The file's content; the same figures give the same bytes.
    """
    with plot_style(**{"svg.hashsalt": "cbn-eval"}):
        figure = Figure(figsize=(13, 5), layout="constrained")
        figure.suptitle(title, fontsize=12, x=0.01, ha="left", fontweight="bold")
        halves: Any = figure.subfigures(1, 2, width_ratios=(1, 1.75))
        _draw_reliability(halves[0], result)
        _draw_recall(halves[1], result, description)
        return rendered(figure, kind)


def _draw_reliability(figure: Any, result: ModelEvaluation) -> None:
    axes, share_axes = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1, label="honest")
    calibration = result.calibration
    if calibration is None:
        series = [(f"ECE {result.scores.ece:.1%}", result.scores.reliability, _AFTER)]
    else:
        series = [
            (f"T = 1, ECE {calibration.before.error:.1%}", calibration.before, _BEFORE),
            (f"T = {calibration.temperature:.2f}, ECE {calibration.after.error:.1%}", calibration.after, _AFTER),
        ]
    for label, reliability, colour in series:
        _draw_diagram(axes, share_axes, reliability, label, colour)
    where = "" if calibration is None else f" ({calibration.held_out_images} held-out images)"
    axes.set(title=f"Accuracy by confidence{where}", xlim=(0, 1), ylim=(0, 1.02), ylabel="accuracy")
    axes.legend(loc="upper left", fontsize=8.5)
    share_axes.set(title="Share of the images", xlabel="confidence of the top class")
    for each in (axes, share_axes):
        each.xaxis.set_major_formatter(PercentFormatter(1.0))
        each.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def _draw_diagram(axes: Any, share_axes: Any, reliability: Reliability, label: str, colour: str) -> None:
    edges = np.linspace(0, 1, len(reliability.weight) + 1)
    points = [
        (confidence, accuracy, weight)
        for confidence, accuracy, weight in zip(
            reliability.confidence, reliability.accuracy, reliability.weight, strict=True
        )
        if confidence is not None and accuracy is not None
    ]
    confidences, accuracies, weights = zip(*points, strict=True)
    axes.vlines(confidences, confidences, accuracies, color=colour, alpha=0.35, linewidth=4)  # the gaps of the ECE
    axes.plot(confidences, accuracies, color=colour, linewidth=1.2, label=label)
    # A dot's area says how many images stand behind it.
    axes.scatter(confidences, accuracies, s=12 + 220 * np.array(weights), color=colour, zorder=3)
    share_axes.stairs(reliability.weight, edges, color=colour, fill=True, alpha=0.35)
    share_axes.stairs(reliability.weight, edges, color=colour, linewidth=1.2)


def _draw_recall(figure: Any, result: ModelEvaluation, description: ModelDescription) -> None:
    axes = figure.subplots()
    counts = description.class_counts
    order = frequency_order(counts)
    positions = np.arange(len(order))
    scores = result.scores
    recalls = np.array([np.nan if scores.per_class[k] is None else scores.per_class[k] for k in order])
    ends = np.array([scores.per_class_interval[k] or (np.nan, np.nan) for k in order])
    colours = [GROUP_COLOURS[shot_group(counts[k])] for k in order]
    axes.bar(positions, recalls, color=colours, width=0.8 if len(order) <= 50 else 1.0)
    axes.vlines(positions, ends[:, 0], ends[:, 1], color=INK, linewidth=1.2 if len(order) <= 200 else 0.5)
    if len(order) <= _NUMBERED_CLASSES:
        for position, recall, high in zip(positions, recalls, ends[:, 1], strict=True):
            text, top = ("no test\nimages", 0.0) if np.isnan(recall) else (f"{recall:.0%}", high)
            axes.text(position, top + 0.015, text, ha="center", va="bottom", fontsize=8.5, bbox=HALO)
    axes.axhline(scores.balanced_accuracy, color=INK, linewidth=1, linestyle="--")
    label_ticks(axes, positions, [_tick(description, k, len(order)) for k in order])
    axes.set(title="Recall by training images, most first; lines are 95 % intervals", ylim=(0, 1.1))
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1.0])
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    figure.legend(handles=_legend(counts, scores.balanced_accuracy), loc="outside lower center", ncols=4, fontsize=8.5)


def _tick(description: ModelDescription, k: int, classes: int) -> str:
    name = description.class_names[k]
    return f"{name}\n{description.class_counts[k]}" if classes <= _NUMBERED_CLASSES else name


def _legend(counts: Sequence[int], balanced_accuracy: float) -> list[Any]:
    present = {shot_group(count) for count in counts}
    handles: list[Any] = [
        Patch(color=colour, label=GROUP_MEANING[group]) for group, colour in GROUP_COLOURS.items() if group in present
    ]
    line = Line2D([], [], color=INK, linestyle="--", linewidth=1)
    line.set_label(f"balanced accuracy {balanced_accuracy:.1%}")
    return [*handles, line]
