"""The report's pictures: one function a picture, matplotlib's Agg renderer, colours safe for the colour-blind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, NullFormatter, PercentFormatter, StrMethodFormatter

from cbn_deploy.runtime.description import ShotGroup, shot_group
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
from cbn_deploy.training.report_data import RunReport

__all__ = ["Picture", "draw_pictures"]


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A finished plot: file name without folder, what it shows in words (for screen readers), PNG bytes."""

    name: str
    title: str
    alternative_text: str
    png: bytes


def draw_pictures(report: RunReport) -> list[Picture]:
    """Every picture that the report has data for."""
    with plot_style():
        pictures = []
        if report.history:  # a run whose metrics.jsonl was lost has none
            pictures.append(_picture(report, "history", "Over the epochs", _history, _history_text(report)))
        pictures.append(_picture(report, "per_class_recall", "Recall per class", _per_class, _per_class_text(report)))
        pictures.append(_picture(report, "shot_groups", "Many, medium and few", _shot_groups, _groups_text(report)))
        if report.mixture:
            pictures.append(_picture(report, "mixture", "The mixture in every layer", _mixture, _mixture_text(report)))
    return pictures


def _picture(
    report: RunReport, name: str, title: str, draw: Callable[[RunReport], Figure], alternative_text: str
) -> Picture:
    png = rendered(draw(report))
    return Picture(name=f"{name}.png", title=title, alternative_text=alternative_text, png=png)


def _history(report: RunReport) -> Figure:
    figure = Figure(figsize=(9.5, 4.4), layout="constrained")
    loss_axes, accuracy_axes = figure.subplots(1, 2)
    _line(loss_axes, report, "classification_loss", label="classification, compound path", color="#0072B2")
    _line(loss_axes, report, "split_loss", label="classification, split path", color="#56B4E9")
    _line(loss_axes, report, "consistency_loss", label="consistency (-2 is perfect)", color="#D55E00")
    loss_axes.set(title="Training loss", xlabel="epoch")
    _line(accuracy_axes, report, "train_accuracy", label="training (augmented)", color=GREY, linestyle=":")
    _line(accuracy_axes, report, "top1", label="test, all classes", color=INK, linewidth=2.2, zorder=4)
    for group, colour in GROUP_COLOURS.items():
        _line(accuracy_axes, report, group, label=f"test, {group}", color=colour, linewidth=1.3)
    accuracy_axes.set(title="Accuracy", xlabel="epoch", ylim=(0, 1.02))
    accuracy_axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    for axes in (loss_axes, accuracy_axes):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(fontsize=8.5, loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2)
    return figure


def _line(axes: Any, report: RunReport, quantity: str, **style: Any) -> None:
    # Epochs without the quantity are left out, not drawn as gaps: a test every tenth epoch is still one line.
    values = [(metrics.epoch, getattr(metrics, quantity)) for metrics in report.history]
    points = [(epoch, value) for epoch, value in values if value is not None]
    if points:
        marker = "o" if len(points) == 1 else None
        axes.plot(*zip(*points, strict=True), marker=marker, **style)


def _per_class(report: RunReport) -> Figure:
    order = report.frequency_order
    classes = len(order)
    figure = Figure(figsize=(9.5, 4.6), layout="constrained")
    recall_axes, count_axes = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    positions = np.arange(classes)
    counts = [report.class_counts[k] for k in order]
    recalls = [report.evaluation.per_class[k] for k in order]
    heights = [0.0 if recall is None else recall for recall in recalls]
    colours = [GROUP_COLOURS[shot_group(count)] for count in counts]
    width = 0.8 if classes <= 50 else 1.0
    recall_axes.bar(positions, heights, color=colours, width=width)
    count_axes.bar(positions, counts, color=colours, width=width)
    if classes <= 20:
        for position, recall, height in zip(positions, recalls, heights, strict=True):
            text = "no test\nimages" if recall is None else f"{recall:.0%}"
            recall_axes.text(position, height + 0.02, text, ha="center", va="bottom", fontsize=8.5, bbox=HALO)
        for position, count in zip(positions, counts, strict=True):
            count_axes.text(position, count * 1.1, str(count), ha="center", va="bottom", fontsize=8.5, bbox=HALO)
    recall_axes.axhline(report.evaluation.top1, color=INK, linewidth=1, linestyle="--")
    recall_axes.set(title="Recall on the test set, most frequent class first", ylim=(0, 1.14))
    recall_axes.set_yticks([0, 0.25, 0.5, 0.75, 1.0])
    recall_axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    count_axes.set_yscale("log")
    count_axes.set(title="Training images (logarithmic)", ylim=(min(0.8, min(counts)), max(counts) * 3))
    count_axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    count_axes.yaxis.set_minor_formatter(NullFormatter())
    label_ticks(count_axes, positions, [report.class_names[k] for k in order])
    recall_axes.grid(visible=False, axis="x")
    _group_legend(figure, counts, report.evaluation.top1)
    return figure


def _group_legend(figure: Figure, counts: Sequence[int], top1: float) -> None:
    present = {shot_group(count) for count in counts}
    handles: list[Any] = [
        Patch(color=colour, label=GROUP_MEANING[group]) for group, colour in GROUP_COLOURS.items() if group in present
    ]
    handles.append(Line2D([], [], color=INK, linestyle="--", linewidth=1, label=f"top-1 {top1:.1%}"))
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), fontsize=8.5)


def _shot_groups(report: RunReport) -> Figure:
    figure = Figure(figsize=(6.2, 3.4), layout="constrained")
    axes = figure.subplots()
    members = report.group_sizes
    names: list[ShotGroup] = list(GROUP_COLOURS)
    for position, group in enumerate(names):
        value = getattr(report.evaluation, group)
        if value is None:
            axes.text(position, 0.02, _group_value(report, group), ha="center", va="bottom", color=GREY)
            continue
        axes.bar(position, value, color=GROUP_COLOURS[group], width=0.6)
        axes.text(
            position, value + 0.02, _group_value(report, group), ha="center", va="bottom", fontweight="bold", bbox=HALO
        )
    top1 = report.evaluation.top1
    axes.axhline(top1, color=INK, linewidth=1, linestyle="--", label=f"top-1, all classes: {top1:.1%}")
    labels = [f"{GROUP_MEANING[group].replace(' (', chr(10) + '(')}\n{_classes(members[group])}" for group in names]
    axes.set_xticks(range(len(names)), labels)
    axes.set(title="Mean recall of each group of classes", ylim=(0, 1.14), xlim=(-0.5, len(names) - 0.5))
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1.0])
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(visible=False, axis="x")
    figure.legend(loc="outside upper right", fontsize=8.5)
    return figure


def _mixture(report: RunReport) -> Figure:
    figure = Figure(figsize=(9.5, 4.8), layout="constrained")
    occupancy_axes, entropy_axes = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1.2))
    layers = list(report.mixture)
    positions = np.arange(len(layers))
    occupancy = np.array([report.mixture[layer].occupancy for layer in layers])
    components = occupancy.shape[1]
    bottom = np.zeros(len(layers))
    # Viridis without its ends: ordered in lightness, and no colour vanishes on white.
    colours = matplotlib.colormaps["viridis"](np.linspace(0.05, 0.95, components))
    for component in range(components):
        share = occupancy[:, component]
        occupancy_axes.bar(
            positions,
            share,
            bottom=bottom,
            width=0.85,
            color=colours[component],
            edgecolor="white",
            linewidth=0.6,
            label=f"Gaussian {component + 1}",
        )
        bottom += share
    occupancy_axes.set(title=f"Share of the pixels that each of the {components} Gaussians claims", ylim=(0, 1))
    occupancy_axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    entropies = [report.mixture[layer].pixel_entropy for layer in layers]
    entropy_axes.plot(positions, entropies, color="#D55E00", marker="o", markersize=4)
    entropy_axes.set(
        title="Pixel entropy: 1 = every Gaussian gets every pixel (plain batch norm), 0 = one Gaussian a pixel",
        ylim=(-0.05, 1.08),
    )
    label_ticks(entropy_axes, positions, layers)
    figure.legend(loc="outside upper center", ncols=min(components, 8), fontsize=8.5)
    return figure


def _classes(count: int) -> str:
    return "1 class" if count == 1 else f"{count} classes"


def _percent(value: float | None) -> str:
    return "no test images" if value is None else f"{value:.1%}"


def _group_value(report: RunReport, group: ShotGroup) -> str:
    return _percent(getattr(report.evaluation, group)) if report.group_sizes[group] else "no such class"


def _history_text(report: RunReport) -> str:
    last = report.history[-1]
    tested = [metrics.top1 for metrics in report.history if metrics.top1 is not None]
    test = f" and {tested[-1]:.1%} on the test set" if tested else ""  # the last line may be lost, and with it the test
    return (
        f"Two line charts over {last.epoch} epochs. Training loss ends at {last.loss:.3f}; accuracy ends at "
        f"{last.train_accuracy:.1%} on augmented training images{test}."
    )


def _per_class_text(report: RunReport) -> str:
    order = report.frequency_order
    first, last = (
        f"{report.class_names[k]} ({report.class_counts[k]} images, {_percent(report.evaluation.per_class[k])})"
        for k in (order[0], order[-1])
    )
    return (
        f"Bar chart of the recall of {len(order)} classes by training frequency, from {first} to {last}; "
        "the table below has every value."
    )


def _groups_text(report: RunReport) -> str:
    groups: list[ShotGroup] = list(GROUP_COLOURS)
    return f"Bar chart: {', '.join(f'{group} {_group_value(report, group)}' for group in groups)}."


def _mixture_text(report: RunReport) -> str:
    entropies = [health.pixel_entropy for health in report.mixture.values()]
    dead = sum(health.dead for health in report.mixture.values())
    return (
        f"Stacked bars of component shares in {len(entropies)} layers, and their pixel entropy, "
        f"between {min(entropies):.2f} and {max(entropies):.2f}; {dead} dead components."
    )
