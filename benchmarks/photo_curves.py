"""How the rows of one study of photo_folders.py learn, epoch by epoch: a plot.

    python benchmarks/photo_curves.py half-size-400        # benchmarks/results/photo_folders/half-size-400.png

A line a row, the mean over its seeds; the seeds themselves are thin; readings and other settings are left out. The
right half is the recall of the rarest shot group that the training set has (few, else medium).
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from photo_folders import RESULTS, STUDIES
from training_runs import read_results

from cbn_deploy.training.plot_style import DPI, GREY, GROUP_MEANING, INK, plot_style

# Okabe and Ito's palette, batch norm alone in grey.
COLOURS = {
    "BN": GREY,
    "CBN": "#0072B2",
    "CBN + SBN": "#009E73",
    "CBN + SBN + DPL": "#D55E00",
    "BN, two views": "#E69F00",
    "CBN, two views": "#56B4E9",
    "BN + SBN": "#CC79A7",
    "BN + SBN + DPL": INK,
}


def main() -> None:
    """Write the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--out", type=Path, help="by default STUDY.png beside the results")
    arguments = parser.parse_args()
    results = [row for row in read_results(RESULTS / arguments.study) if "history" in row]
    if not results:
        parser.error(f"no finished run of {arguments.study} in {RESULTS}")
    plot(results, arguments.out or RESULTS / f"{arguments.study}.png")


def plot(results: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Top-1 and the recall of the rarest group over the epochs."""
    rarest, meaning = next(
        (group, GROUP_MEANING[group]) for group in reversed(GROUP_MEANING) if results[0][group] is not None
    )
    panels = (("top1", "top-1, %"), (rarest, f"mean recall, {meaning}, %"))
    drawn = {name: rows for name in COLOURS if (rows := [row for row in results if row["variant"] == name])}
    with plot_style():
        figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
        for panel, (key, title) in zip(axes, panels, strict=True):
            for name, rows in drawn.items():
                colour = COLOURS[name]
                label = f"{name}, {len(rows)} seed{'s' * (len(rows) > 1)}"
                curves = [evaluated(row["history"], key) for row in rows]
                for epochs, values in curves if len(curves) > 1 else ():
                    panel.plot(epochs, values, color=colour, linewidth=0.7, alpha=0.5)
                mean = [statistics.mean(values) for values in zip(*(values for _, values in curves), strict=True)]
                panel.plot(curves[0][0], mean, color=colour, linewidth=2, marker="o", markersize=3, label=label)
            panel.set_title(title)
            panel.set_xlabel("epoch")
        axes[0].legend()
        figure.savefig(out, dpi=DPI)
    print(f"Written: {out}")


def evaluated(history: Sequence[Mapping[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """The epochs that were judged on the test images, and the figure in per cent."""
    rows = [row for row in history if row[key] is not None]
    return [row["epoch"] for row in rows], [100 * row[key] for row in rows]


if __name__ == "__main__":
    main()
