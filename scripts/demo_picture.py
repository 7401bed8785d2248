"""One picture of what the demo made: recall by class, images answered over HTTP, latency of every runtime."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

__all__ = ["draw_picture"]

BLUE, ORANGE, GREY, RED = "#0072B2", "#E69F00", "#B8BFC6", "#D55E00"


def draw_picture(folder: Path, answers: list[dict[str, Any]], target: Path) -> None:
    """Draw from the files in ``folder`` (report.json, bench.json) and the server's ``answers``; write a PNG."""
    figure = Figure(figsize=(13.5, 4.4), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(1, 3, width_ratios=[1.05, 1.0, 1.25])
    scores = json.loads((folder / "scores.json").read_text())
    report = json.loads((folder / "digits" / "report.json").read_text())
    draw_recall(figure.add_subplot(grid[0]), scores, report)
    draw_answers(figure.add_subplot(grid[1]), answers)
    draw_latency(figure.add_subplot(grid[2]), json.loads((folder / "bench.json").read_text()))
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(target)


def draw_recall(axes: Axes, scores: dict[str, Any], report: dict[str, Any]) -> None:
    """Recall of every class on balanced test images, most frequent first."""
    classes = sorted(report["classes"], key=lambda entry: -entry["training_images"])
    shades = {"many": BLUE, "medium": "#56A0D3", "few": ORANGE}
    places = np.arange(len(classes))
    axes.bar(places, [100 * c["recall"] for c in classes], 0.78, color=[shades[c["group"]] for c in classes])
    axes.set_xticks(places, [f"{c['name']}\n{c['training_images']}" for c in classes], fontsize=8.5)
    axes.set(ylim=(0, 105), ylabel="recall, %", xlabel="class, and its training images below")
    axes.set_title(f"Balanced test top-1: {100 * scores['top1']:.1f} %", loc="left", fontweight="bold")
    present = [name for name in shades if any(c["group"] == name for c in classes)]
    handles = [Patch(color=shades[name], label=f"{name}-shot") for name in present]
    axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3, frameon=False, fontsize=9)


def draw_answers(axes: Axes, answers: list[dict[str, Any]]) -> None:
    """The images that went over HTTP as one mosaic, each under its answer."""
    columns, gap = 5, 0.34  # gap in units of a tile: room for the answer
    for place, answer in enumerate(answers):
        column, row = place % columns, place // columns
        left, top = column * 1.12, row * (1 + gap)
        axes.imshow(
            np.asarray(Image.open(answer["image"])), extent=(left, left + 1, top + 1, top), interpolation="nearest"
        )
        right = answer["label"] == answer["truth"]
        text = (
            f"{answer['label']}  {answer['probability']:.0%}" if right else f"{answer['label']}, is {answer['truth']}"
        )
        axes.text(left + 0.5, top - 0.05, text, ha="center", va="bottom", fontsize=8.5, color="k" if right else RED)
    rows = -(-len(answers) // columns)
    axes.set(xlim=(-0.1, columns * 1.12), ylim=(rows * (1 + gap) - gap + 0.1, -gap), aspect="equal")
    axes.set_axis_off()
    count = sum(answer["label"] == answer["truth"] for answer in answers)
    axes.set_title(f"POST /v1/classify: {count} of {len(answers)} right", loc="left", fontweight="bold")


def draw_latency(axes: Axes, bench: dict[str, Any]) -> None:
    """Median latency of every runtime at the largest batch, the batch-norm twin beside it."""
    batch = max(timing["batch_size"] for timing in bench["timings"])
    rows = {t["candidate"]: t["latency"]["median"] for t in bench["timings"] if t["batch_size"] == batch}
    titles = {c["name"]: c["title"] for c in bench["candidates"]}
    runtimes = sorted(
        {name.split("/")[1] for name in rows}, key=lambda r: -rows.get(f"cbn/{r}", rows.get(f"bn/{r}", 0))
    )
    for offset, network, colour, label in ((-0.2, "cbn", BLUE, "CBN"), (0.2, "bn", GREY, "batch-norm twin")):
        places = [place for place, runtime in enumerate(runtimes) if f"{network}/{runtime}" in rows]
        values = [rows[f"{network}/{runtimes[place]}"] for place in places]
        bars = axes.barh([place + offset for place in places], values, 0.38, color=colour, label=label)
        axes.bar_label(bars, [f"{v:.0f}" if v >= 100 else f"{v:.3g}" for v in values], padding=3, fontsize=8.5)
    names = [titles.get(f"cbn/{runtime}", titles.get(f"bn/{runtime}", runtime)) for runtime in runtimes]
    axes.set_yticks(range(len(runtimes)), names, fontsize=8.5)
    axes.invert_yaxis()
    axes.set_xlabel(f"milliseconds, batch of {batch}, median, {bench['parameters']['threads']} threads")
    axes.set_title("Latency, parity checked first", loc="left", fontweight="bold")
    axes.legend(frameon=False, fontsize=9, loc="lower right")
