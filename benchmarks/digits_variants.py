"""digits-lt, one row a variant, several seeds: which start and which reading trains, beside batch norm.

    python benchmarks/digits_variants.py --seeds 3 --jobs 2
    python benchmarks/digits_variants.py --variants batch-norm default --seeds 5

Every run is `cbn-train digits-lt` with settings, in a process of its own with one thread, so that the numbers depend on
seed and settings alone. Finished runs are kept and not repeated: stop and go on at will. Writes
benchmarks/results/digits_variants.json (all runs) and prints the table that docs/results.md quotes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from training_runs import CBN_TRAIN, ROOT, divergence, file_name, spread

from cbn_deploy.machine import describe_machine

RESULTS = ROOT / "benchmarks" / "results" / "digits_variants.json"

# name -> settings. "default" is the recipe as it stands.
VARIANTS: dict[str, tuple[str, ...]] = {
    "batch-norm": ("model=resnet20-bn",),
    "batch-norm, two views": ("model=resnet20-bn", "loss.paths=two_views"),
    "default": (),
    "normaliser shared": ("norm.normalizer=shared",),
    "init=variance_ladder": ("norm.initialization=variance_ladder",),
    "init=first_batch": ("norm.initialization=first_batch",),
    "init=identical": ("norm.initialization=identical",),
    "compound path only": ("loss.paths=compound",),
    "compound path only, momentum 0.9": ("loss.paths=compound", "norm.momentum=0.9"),
    "joint density": ("norm.density_scale=joint",),
    "algorithm2, joint, lambda=0.1": ("statistics=algorithm2", "norm.density_scale=joint", "norm.momentum=0.9"),
    "update_then_read, joint, lambda=0.1": (
        "statistics=update_then_read",
        "norm.density_scale=joint",
        "norm.momentum=0.9",
    ),
}


def main() -> None:
    """Run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {"runs": {}}
    todo = [
        (variant, seed)
        for seed in range(arguments.seeds)
        for variant in arguments.variants
        if f"{variant}/{seed}" not in results["runs"]
    ]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for (variant, seed), figures in zip(todo, pool.map(lambda job: train(*job), todo), strict=True):
            results["runs"][f"{variant}/{seed}"] = figures
            results["machine"] = describe_machine(["torch", "numpy"])
            RESULTS.parent.mkdir(exist_ok=True)
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")
            print(f"{variant}, seed {seed}: {figures}", flush=True)
    print_table(results["runs"])


def train(variant: str, seed: int) -> dict[str, Any]:
    """One run; the figures of its last epoch. A run that diverges is a result, too."""
    out = ROOT / "runs" / "digits-variants" / file_name(variant, seed)
    settings = [word for setting in (*VARIANTS[variant], f"seed={seed}") for word in ("--set", setting)]
    command = [
        CBN_TRAIN,
        "digits-lt",
        "--threads",
        "1",
        "--out",
        str(out),
        *settings,
    ]
    if not (out / "report.json").is_file():
        resume = ["--resume"] if (out / "last.pt").is_file() else []
        done = subprocess.run([*command, *resume], cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            return {"diverged": divergence(done.stderr)}
    return figures_of(json.loads((out / "report.json").read_text()))


def figures_of(report: dict[str, Any]) -> dict[str, Any]:
    """What the table needs of a report.json."""
    evaluation, mixture = report["evaluation"], report["mixture"].values()
    return {
        "top1": evaluation["top1"],
        "few": evaluation["few"],
        "pixel_entropy": statistics.mean(layer["pixel_entropy"] for layer in mixture) if mixture else None,
        "dead": sum(layer["dead"] for layer in mixture),
        "seconds": report["seconds"],
    }


def print_table(runs: dict[str, dict[str, Any]]) -> None:
    """Markdown: mean and standard deviation over the seeds, last epoch."""
    print("\n| variant | seeds | top-1 | few | pixel entropy | dead components |\n|---|---|---|---|---|---|")
    for variant in VARIANTS:
        rows = [runs[key] for key in sorted(runs) if key.rsplit("/", 1)[0] == variant]
        finished = [row for row in rows if "top1" in row]
        if not rows:
            continue
        if not finished:
            print(f"| {variant} | {len(rows)} | diverged | | | |")
            continue
        entropy = [row["pixel_entropy"] for row in finished if row["pixel_entropy"] is not None]
        shown = f"{statistics.mean(entropy):.2f}" if entropy else "-"
        diverged = f" ({len(rows) - len(finished)} diverged)" if len(finished) < len(rows) else ""
        print(
            f"| {variant} | {len(rows)}{diverged} | {spread([row['top1'] for row in finished])} "
            f"| {spread([row['few'] for row in finished])} | {shown} "
            f"| {statistics.mean(row['dead'] for row in finished):.1f} |"
        )


if __name__ == "__main__":
    main()
