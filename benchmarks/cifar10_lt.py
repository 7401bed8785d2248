"""CIFAR-10-LT at a small budget: which reading of the paper trains, and what of the gain is the mixture's.

    python benchmarks/cifar10_lt.py --data DIR --study readings --seeds 2 --jobs 2
    python benchmarks/cifar10_lt.py --data DIR --study table2 --seeds 3
    python benchmarks/cifar10_lt.py --table readings            # what has been run so far, as markdown

Every run is `cbn-train cifar10-lt` with settings (:mod:`training_runs`). Each leaves a file
in benchmarks/results/cifar10_lt/: settings, the curve, per-class recall of the last epoch, and every layer's occupancy
and per-pixel posterior entropy (1: every component gets every pixel, batch norm in disguise; 0: one-hot).
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from paper_readings import CHOICES, DUAL_CHOICES
from training_runs import ROOT, Run, file_name, print_table, read_results, train

RESULTS = ROOT / "benchmarks" / "results" / "cifar10_lt"

ONE_PATH = ("loss.paths=compound",)
BATCH_NORM = ("model=resnet8-bn", *ONE_PATH)
# Batch norm as the compound path (one component), beside split batch norm with statistics of its own.
SPLIT_ONLY = ("components=1", "norm.split_groups=4")
NO_CONSISTENCY = ("loss.consistency_weight=0",)

# The rows of the paper's Table 2, and the two controls that it lacks.
TABLE2: Mapping[str, tuple[str, ...]] = {
    "BN": BATCH_NORM,
    "BN, two views": ("model=resnet8-bn", "loss.paths=two_views"),
    "BN + SBN": (*SPLIT_ONLY, *NO_CONSISTENCY),
    "BN + SBN + DPL": SPLIT_ONLY,
    "CBN": ONE_PATH,
    "CBN, two views": ("loss.paths=two_views",),
    "CBN + SBN": NO_CONSISTENCY,
    "CBN + SBN + DPL": (),
}


@dataclass(frozen=True)
class Study:
    """What is held fixed, and the rows."""

    fixed: tuple[str, ...]
    variants: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


PLAIN_VIEWS = ("views.autoaugment=false", "views.cutout=0")
SMALL = ("model=resnet8", "rho=100")
STUDIES: Mapping[str, Study] = {
    # Two views by crop and flip alone: at ten epochs AutoAugment only slows every row down.
    "readings": Study(
        (*SMALL, "epochs=10", "schedule.evaluate_every=10", *PLAIN_VIEWS),
        {
            **TABLE2,
            "CBN + SBN, normaliser shared": (*NO_CONSISTENCY, "norm.normalizer=shared"),
            **{f"CBN, {name}": (*ONE_PATH, *change) for name, change in CHOICES.items()},
            **{f"CBN + SBN + DPL, {name}": change for name, change in DUAL_CHOICES.items()},
        },
    ),
    "table2": Study((*SMALL, "epochs=20", "schedule.evaluate_every=5"), TABLE2),
}


def main() -> None:
    """Run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with the CIFAR-10 files, as for cbn-train")
    parser.add_argument("--study", choices=STUDIES, default="readings")
    parser.add_argument("--table", choices=STUDIES, help="print the table of the finished runs and stop")
    parser.add_argument("--only", nargs="+", metavar="VARIANT", help="these variants alone, in this order")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    if arguments.table is None:
        if arguments.data is None:
            parser.error("--data is needed to train")
        variants = arguments.only or list(STUDIES[arguments.study].variants)
        runs = [
            run_of(arguments.study, variant, seed, arguments.data)
            for seed in range(arguments.seeds)
            for variant in variants
        ]
        with ThreadPoolExecutor(arguments.jobs) as pool:
            for line in pool.map(train, runs):
                print(line, flush=True)
    study = arguments.table or arguments.study
    print_table(STUDIES[study].variants, read_results(RESULTS / study))


def run_of(study: str, variant: str, seed: int, data: Path) -> Run:
    """The variant's training in the study."""
    name = file_name(variant, seed)
    return Run(
        variant,
        seed,
        "cifar10-lt",
        (*STUDIES[study].fixed, *STUDIES[study].variants[variant], f"seed={seed}"),
        data,
        ROOT / "runs" / "cifar10-lt" / study / name,
        RESULTS / study / f"{name}.json",
    )


if __name__ == "__main__":
    main()
