"""What CBN gains over batch norm in every setting of photo_folders.py, seed by seed: a table and a plot.

    python benchmarks/photo_gains.py                       # benchmarks/results/photo_folders/gains.png

Both trainings of a pair have the same images, the same seed and the same number of epochs.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from photo_folders import RESULTS
from training_runs import mean_recall, rarest_three, read_results

NAMES = {
    "recipe": "694 photographs, the recipe as it is: ResNet-32, 200 epochs",
    "short": "... 30 epochs",
    "wide": "1,622 photographs of 25 classes, ResNet-32, 80 epochs",
    "solar": "2,325 images of solar cells, 64 px, ResNet-32, 30 epochs",
    "small": "694 photographs, ResNet-20, 60 epochs",
    "small-plain-views": "... crop and flip only",
    "small-resnet8": "... ResNet-8",
    "small-long": "... 180 epochs",
    "small-long-plain-views": "... 180 epochs, crop and flip only",
    "half-size": "CIFAR-10-LT at 16 px, ResNet-8, 60 epochs, crop and flip",
    "half-size-resnet20": "... ResNet-20",
    "half-size-400": "... ResNet-20, the paper's views and 400 epochs",
}
COMPARED = {"CBN": "tab:blue", "CBN + SBN + DPL": "tab:orange"}


@dataclass(frozen=True)
class Gain:
    """One variant against batch norm in one setting, points by seed."""

    study: str
    variant: str
    mean: Sequence[float]
    tail: Sequence[float]
    baseline: float
    entropy: float


def main() -> None:
    """Print the table, write the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS / "gains.png")
    arguments = parser.parse_args()
    gains = [gain for study in NAMES for variant in COMPARED if (gain := gain_of(study, variant))]
    print("| setting | training | BN's mean recall | gain | seed by seed | tail three, seed by seed | pixel entropy |")
    print("|---|---|---|---|---|---|---|")
    for gain in gains:
        print(
            f"| {NAMES[gain.study]} | {gain.variant} | {gain.baseline:.1f} | {mean_and_error(gain.mean)} "
            f"| {signed(gain.mean)} | {signed(gain.tail)} "
            f"| {gain.entropy:.2f} |"
        )
    plot(gains, arguments.out)


def gain_of(study: str, variant: str) -> Gain | None:
    """``None``: no seed of the study has both trainings."""
    results = read_results(RESULTS / study)
    baselines, runs = by_seed(results, "BN"), by_seed(results, variant)
    seeds = sorted(baselines.keys() & runs.keys())
    if not seeds:
        return None
    layers = [layer for seed in seeds for layer in runs[seed]["mixture"].values()]
    return Gain(
        study,
        variant,
        [100 * (mean_recall(runs[seed]) - mean_recall(baselines[seed])) for seed in seeds],
        [100 * (rarest_three(runs[seed]) - rarest_three(baselines[seed])) for seed in seeds],
        100 * statistics.mean(mean_recall(baselines[seed]) for seed in seeds),
        statistics.mean(layer["pixel_entropy"] for layer in layers),
    )


def by_seed(results: Sequence[Mapping[str, Any]], variant: str) -> dict[int, Mapping[str, Any]]:
    """The variant's finished runs."""
    return {row["seed"]: row for row in results if row["variant"] == variant and "top1" in row}


def mean_and_error(points: Sequence[float]) -> str:
    """The mean and, of several seeds, its standard error."""
    mean = f"{statistics.mean(points):+.1f}"
    return mean if len(points) < 2 else f"{mean} ± {statistics.stdev(points) / len(points) ** 0.5:.1f}"


def signed(points: Sequence[float]) -> str:
    """Points with their signs."""
    return ", ".join(f"{value:+.1f}" for value in points)


def plot(gains: Sequence[Gain], out: Path) -> None:
    """A row a setting, a dot a seed, a bar at the mean."""
    studies = list(dict.fromkeys(gain.study for gain in gains))
    figure, (left, right) = plt.subplots(
        1, 2, sharey=True, figsize=(10, 0.45 * len(studies) + 1.4), layout="constrained"
    )
    for axes, title, part in ((left, "mean recall", "mean"), (right, "recall, three rarest classes", "tail")):
        for gain in gains:
            colour = COMPARED[gain.variant]
            row = studies.index(gain.study) + (0.16 if gain.variant != "CBN" else -0.16)
            points = getattr(gain, part)
            axes.plot(points, [row] * len(points), "o", color=colour, alpha=0.7, markersize=5)
            axes.plot([statistics.mean(points)], [row], "|", color=colour, markersize=16, markeredgewidth=2.5)
        axes.axvline(0, color="0.4", linewidth=1)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("points over batch norm")
        axes.grid(axis="x", alpha=0.3)
    left.set_yticks(range(len(studies)), [NAMES[study] for study in studies])
    left.invert_yaxis()
    handles = [
        plt.Line2D([], [], color=colour, marker="o", linestyle="", label=name) for name, colour in COMPARED.items()
    ]
    figure.legend(handles=handles, loc="outside lower left", ncols=2, fontsize=8)
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    main()
