"""CIFAR-10-LT at a small budget: which reading of the paper trains, and what of the gain is the mixture's.

    python benchmarks/cifar10_lt.py --data DIR --seeds 2 --jobs 2
    python benchmarks/cifar10_lt.py --table                     # what has been run so far, as markdown

ResNet-8, rho 100, 10 epochs, crop and flip alone: so short a run AutoAugment only slows down. The rows of Table 2 for
a longer schedule are in `photo_folders.py --study half-size-resnet20`.

Every run is `cbn-train cifar10-lt` with settings (:mod:`training_runs`). Each leaves a file
in benchmarks/results/cifar10_lt/: settings, the curve, per-class recall of the last epoch, and every layer's occupancy
and per-pixel posterior entropy (1: every component gets every pixel, batch norm in disguise; 0: one-hot).
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from paper_readings import CHOICES, DUAL_CHOICES
from training_runs import ROOT, Run, file_name, print_table, read_results, train

RESULTS = ROOT / "benchmarks" / "results" / "cifar10_lt" / "readings"

FIXED = (
    "model=resnet8",
    "rho=100",
    "epochs=10",
    "schedule.evaluate_every=10",
    "views.autoaugment=false",
    "views.cutout=0",
)
ONE_PATH = ("loss.paths=compound",)
DUAL_PATH = ("loss.paths=compound+split",)
# Batch norm as the compound path (one component), beside split batch norm with statistics of its own.
SPLIT_ONLY = (*DUAL_PATH, "components=1", "norm.split_groups=4")
NO_CONSISTENCY = ("loss.consistency_weight=0",)

# The rows of the paper's Table 2, two controls that it lacks, and the paper's open choices.
VARIANTS: Mapping[str, tuple[str, ...]] = {
    "BN": ("model=resnet8-bn", *ONE_PATH),
    "BN, two views": ("model=resnet8-bn", "loss.paths=two_views"),
    "BN + SBN": (*SPLIT_ONLY, *NO_CONSISTENCY),
    "BN + SBN + DPL": SPLIT_ONLY,
    "CBN": ONE_PATH,
    "CBN, two views": ("loss.paths=two_views",),
    "CBN + SBN": (*DUAL_PATH, *NO_CONSISTENCY),
    "CBN + SBN + DPL": DUAL_PATH,
    "CBN + SBN, normaliser shared": (*DUAL_PATH, *NO_CONSISTENCY, "norm.normalizer=shared"),
    **{f"CBN, {name}": (*ONE_PATH, *change) for name, change in CHOICES.items()},
    **{f"CBN + SBN + DPL, {name}": (*DUAL_PATH, *change) for name, change in DUAL_CHOICES.items()},
    # How fast the statistics follow the batches: one component, where they only serve after training, is the control.
    "CBN, 1 components, momentum 0.9": (*ONE_PATH, "components=1", "norm.momentum=0.9"),
    "CBN, momentum 0.5": (*ONE_PATH, "norm.momentum=0.5"),
}


def main() -> None:
    """Run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with the CIFAR-10 files, as for cbn-train")
    parser.add_argument("--table", action="store_true", help="print the table of the finished runs and stop")
    parser.add_argument("--only", nargs="+", metavar="VARIANT", choices=VARIANTS, help="these rows alone")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    if not arguments.table:
        if arguments.data is None:
            parser.error("--data is needed to train")
        variants = arguments.only or list(VARIANTS)
        runs = [run_of(variant, seed, arguments.data) for seed in range(arguments.seeds) for variant in variants]
        with ThreadPoolExecutor(arguments.jobs) as pool:
            for line in pool.map(train, runs):
                print(line, flush=True)
    print_table(VARIANTS, read_results(RESULTS))


def run_of(variant: str, seed: int, data: Path) -> Run:
    """The variant's training."""
    name = file_name(variant, seed)
    return Run(
        variant,
        seed,
        "cifar10-lt",
        (*FIXED, *VARIANTS[variant], f"seed={seed}"),
        data,
        ROOT / "runs" / "cifar10-lt" / "readings" / name,
        RESULTS / f"{name}.json",
    )


if __name__ == "__main__":
    main()
