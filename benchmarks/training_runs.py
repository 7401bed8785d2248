"""One `cbn-train` in a process of its own, its figures in a file, and the table of many: shared by the studies here.

Every run has one thread, so that its figures depend on seed and settings alone. A run that was stopped goes on where it
was, a finished one is not repeated.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cbn_deploy.machine import describe_machine

ROOT = Path(__file__).resolve().parents[1]
CBN_TRAIN = str(Path(sys.executable).with_name("cbn-train"))
_INTERRUPTED = 130  # what cbn-train ends with after Ctrl-C or SIGTERM


@dataclass(frozen=True)
class Run:
    """One training: the recipe, its data and settings, and where it works and leaves its figures."""

    variant: str
    seed: int
    recipe: str
    settings: tuple[str, ...]
    data: Path | None
    out: Path
    result: Path


def file_name(variant: str, seed: int) -> str:
    """The name of a variant's folder or file."""
    return f"{variant}-{seed}".replace(" ", "").replace(",", "_").replace("/", "_")


def train(run: Run) -> str:
    """The run to its result file, a line to print; a run that diverges is a result, too."""
    if run.result.is_file():
        return f"{run.variant}, seed {run.seed}: done before"
    command = [CBN_TRAIN, run.recipe, "--out", str(run.out), "--threads", "1"]
    command += ["--data", str(run.data)] if run.data else []
    command += [word for setting in run.settings for word in ("--set", setting)]
    command += ["--resume"] if (run.out / "last.pt").is_file() else []
    report = run.out / "report.json"
    done = None if report.is_file() else subprocess.run(command, capture_output=True, text=True)
    if done is not None and (done.returncode < 0 or done.returncode == _INTERRUPTED):
        return f"{run.variant}, seed {run.seed}: stopped, goes on when it is started again"
    figures: dict[str, Any] = {"variant": run.variant, "seed": run.seed, "settings": run.settings}
    if done is not None and done.returncode:
        figures["diverged"] = divergence(done.stderr)
    else:
        figures |= figures_of(json.loads(report.read_text()))
    figures["machine"] = describe_machine(["torch", "numpy"])
    run.result.parent.mkdir(parents=True, exist_ok=True)
    run.result.write_text(json.dumps(figures, indent=1) + "\n")
    outcome = "diverged" if "diverged" in figures else f"{mean_recall(figures):.4f}"
    return f"{run.variant}, seed {run.seed}: {outcome}"


def divergence(stderr: str) -> str:
    """What `cbn-train` said of a training that diverged.

    Raises:
        RuntimeError: it failed of something else (a full disk, a wrong setting), which says nothing about the variant.
    """
    said = " ".join(stderr.split())
    if "not finite" not in said:
        raise RuntimeError(f"cbn-train failed: {said}")
    return said


def figures_of(report: Mapping[str, Any]) -> dict[str, Any]:
    """What the tables and curves need of a report.json."""
    evaluation = report["evaluation"]
    return {
        **{key: evaluation[key] for key in ("top1", "many", "medium", "few", "ece", "per_class")},
        "class_counts": [row["training_images"] for row in report["classes"]],
        "mixture": report["mixture"],
        "history": report["history"],
        "seconds": report["seconds"],
    }


def print_table(variants: Iterable[str], results: Sequence[Mapping[str, Any]], *, calibration: bool = False) -> None:
    """Markdown: mean and standard deviation over the seeds, last epoch; a variant without a run has no row.

    The mean recall (top-1, where the test set is balanced) counts; the gain is what lies between a variant and "BN" of
    the same seed, in points of it. With ``calibration`` there is a column of the expected calibration error.
    """
    columns = [
        "training",
        "seeds",
        "mean recall",
        "gain, seed by seed",
        "tail three",
        "pixel entropy",
        "dead components",
    ]
    columns += ["ECE"] if calibration else []
    print(f"\n| {' | '.join(columns)} |")
    print("|---" * len(columns) + "|")
    baseline = {row["seed"]: mean_recall(row) for row in results if row["variant"] == "BN" and "top1" in row}
    for variant in variants:
        rows = [row for row in results if row["variant"] == variant]
        finished = [row for row in rows if "top1" in row]
        if not rows:
            continue
        if not finished:
            print(f"| {variant} | {len(rows)} | diverged" + " |" * (len(columns) - 2))
            continue
        gains = [100 * (mean_recall(row) - baseline[row["seed"]]) for row in finished if row["seed"] in baseline]
        gain = "-" if variant == "BN" else ", ".join(f"{value:+.1f}" for value in gains)
        layers = [layer for row in finished for layer in row["mixture"].values() if len(layer["occupancy"]) > 1]
        entropy = f"{statistics.mean(layer['pixel_entropy'] for layer in layers):.2f}" if layers else "-"
        dead = f"{sum(layer['dead'] for layer in layers) / len(finished):.1f}" if layers else "-"
        lost = f" ({len(rows) - len(finished)} diverged)" if len(finished) < len(rows) else ""
        tail = spread([rarest_three(row) for row in finished])
        ece = f" {spread([row['ece'] for row in finished])} |" if calibration else ""
        print(
            f"| {variant} | {len(rows)}{lost} | {spread([mean_recall(row) for row in finished])} | {gain} | {tail} "
            f"| {entropy} | {dead} |{ece}"
        )


def mean_recall(figures: Mapping[str, Any]) -> float:
    """Every class counts alike."""
    return statistics.mean(figures["per_class"])


def rarest_three(figures: Mapping[str, Any]) -> float:
    """Mean recall of the three classes with the fewest training images."""
    rarest = sorted(range(len(figures["class_counts"])), key=lambda label: figures["class_counts"][label])[:3]
    return statistics.mean(figures["per_class"][label] for label in rarest)


def read_results(folder: Path) -> list[dict[str, Any]]:
    """The result files of a folder, by name."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def spread(fractions: Sequence[float]) -> str:
    """Per cent: mean ± standard deviation."""
    deviation = f" ± {100 * statistics.stdev(fractions):.1f}" if len(fractions) > 1 else ""
    return f"{100 * statistics.mean(fractions):.1f}{deviation}"
