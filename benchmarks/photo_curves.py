"""How the rows of one study of photo_folders.py learn, epoch by epoch: a plot.

    python benchmarks/photo_curves.py half-size-400        # benchmarks/results/photo_folders/half-size-400.png

A line a row, the mean over its seeds; the seeds themselves are thin; readings and other settings are left out. The
right half is the recall of the rarest shot group that the training set has (few, else medium).
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from photo_folders import RESULTS, STUDIES, VARIANTS
from training_runs import read_results

from cbn_deploy.atomic import atomic_write_bytes
from cbn_deploy.training.finished_runs_plot import Curve, curve_legend, draw_curves
from cbn_deploy.training.plot_style import GROUP_MEANING, plot_style, rendered


def main() -> None:
    """Write the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--out", type=Path, help="by default STUDY.png beside the results")
    arguments = parser.parse_args()
    results = [row for row in read_results(RESULTS / arguments.study) if "history" in row]
    if not results:
        parser.error(f"no finished run of {arguments.study} in {RESULTS}")
    out = arguments.out or RESULTS / f"{arguments.study}.png"
    atomic_write_bytes(out, picture(results))
    print(f"Written: {out}")


def picture(results: Sequence[Mapping[str, Any]]) -> bytes:
    """Top-1 and the recall of the rarest group over the epochs."""
    rarest, meaning = next(
        (group, GROUP_MEANING[group]) for group in reversed(GROUP_MEANING) if results[0][group] is not None
    )
    drawn = {name: rows for name in VARIANTS if (rows := [row for row in results if row["variant"] == name])}
    with plot_style():
        figure = Figure(figsize=(10, 4.2), layout="constrained")
        panels = (("top1", "Top-1"), (rarest, f"Mean recall of {meaning}"))
        for axes, (key, title) in zip(figure.subplots(1, 2), panels, strict=True):
            draw_curves(axes, [[judged(row["history"], key) for row in rows] for rows in drawn.values()])
            axes.set(title=title, xlabel="epoch")
        handles = curve_legend((name, len(rows)) for name, rows in drawn.items())
        figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=9)
        return rendered(figure)


def judged(history: Sequence[Mapping[str, Any]], key: str) -> Curve:
    """The epochs that were judged on the test images, and the figure."""
    return [(row["epoch"], row[key]) for row in history if row[key] is not None]


if __name__ == "__main__":
    main()
