"""Long-tailed photographs as a folder per class, as a user brings them: batch norm beside CBN.

    python benchmarks/photo_folders.py --data DIR --study small --seeds 3 --jobs 2
    python benchmarks/photo_folders.py --data DIR --study half-size --seeds 3
    python benchmarks/photo_folders.py --data DIR --study small --readings --seeds 2
    python benchmarks/photo_folders.py --table small

`small`: ten random classes of CIFAR-100 with 250 to 5 training images (rho 50; 694 in all), others for every seed,
ResNet-20, 60 epochs, everything else as the recipe has it.
`half-size`: CIFAR-10-LT (rho 100) at 16 x 16 pixels, so that a CPU can afford a longer schedule: ResNet-8, 60 epochs,
batches of 128, crop and flip.
`half-size-400`: the same images for the paper's 400 epochs and with its views, ResNet-20: the nearest to Table 2 that
two cores finish, dual-path learning in about two and a half hours.
`recipe`: the photographs of `small` with the recipe as it is, ResNet-32 and 200 epochs, but for the size of the images.
`short`: the same for 30 epochs, about a minute and a half a run.
`wide`: 25 classes instead of ten (1,622 images in all), 80 epochs.
`solar`: other images altogether, long-tailed by nature: solar cells in eight classes of 920 to 50
(:func:`photo_sets.solar_cells`; `--data` is the folder of their package), the recipe as it is, for 30 epochs; the mean
recall counts there.
The others change one thing, to tell what the difference between batch norm and CBN depends on: AutoAugment and cutout,
depth, or epochs (`long`: 180).

All write image files into a folder per class and run `cbn-train image-folder` on them (:mod:`training_runs`); of
CIFAR all test images of the classes are used.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from paper_readings import CHOICES, DUAL_CHOICES
from photo_sets import WORK, half_size, small_set, solar_cells, wide_set
from training_runs import ROOT, Run, file_name, print_table, read_results, train

RESULTS = ROOT / "benchmarks" / "results" / "photo_folders"

ONE_PATH = ("loss.paths=compound",)
DUAL_PATH = ("loss.paths=compound+split",)
VARIANTS: Mapping[str, tuple[str, ...]] = {
    "BN": ONE_PATH,
    "BN, two views": ("loss.paths=two_views",),
    "CBN": ONE_PATH,
    "CBN, two views": ("loss.paths=two_views",),
    "CBN + SBN": (*DUAL_PATH, "loss.consistency_weight=0"),
    "CBN + SBN + DPL": DUAL_PATH,
    "CBN + SBN + DPL, normaliser shared": (*DUAL_PATH, "norm.normalizer=shared"),
    "BN + SBN": (*DUAL_PATH, "components=1", "norm.split_groups=4", "loss.consistency_weight=0"),
    "BN + SBN + DPL": (*DUAL_PATH, "components=1", "norm.split_groups=4"),
}
# Is it the normalisation, or does batch norm want another setting than the recipe's?
OPTIMIZERS = {
    "no decay": ("optimizer.decay_norm=false",),
    "lr 0.02": ("lr=0.02",),
    "lr 0.1": ("lr=0.1",),
}
READINGS: Mapping[str, tuple[str, ...]] = {
    **{f"{layer}, {name}": (*ONE_PATH, *change) for name, change in OPTIMIZERS.items() for layer in ("BN", "CBN")},
    # The sum of two losses has twice the gradient, so dual-path learning may want less.
    "CBN + SBN + DPL, lr 0.02": (*DUAL_PATH, *OPTIMIZERS["lr 0.02"]),
    **{f"CBN, {components} components": (*ONE_PATH, f"components={components}") for components in (1, 2, 8)},
    **{f"CBN, {name}": (*ONE_PATH, *change) for name, change in CHOICES.items()},
    **{f"CBN + SBN + DPL, {name}": (*DUAL_PATH, *change) for name, change in DUAL_CHOICES.items()},
}
ALL = {**VARIANTS, **READINGS}


@dataclass(frozen=True)
class Study:
    """Which images, and what all variants have in common."""

    write: Callable[[Path, int], Path]
    model: str
    settings: tuple[str, ...]
    held_out: bool = False  # no test folder: the seed also says which images are held out


def main() -> None:
    """Run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with the CIFAR files (`solar`: with its labels.csv)")
    parser.add_argument("--study", choices=STUDIES, default="small")
    parser.add_argument("--table", choices=STUDIES, help="print the table of the finished runs and stop")
    parser.add_argument("--only", nargs="+", metavar="VARIANT", choices=ALL, help="these rows alone")
    parser.add_argument(
        "--readings", action="store_true", help="the paper's open choices, one at a time, instead of the usual rows"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    if arguments.table is None:
        if arguments.data is None:
            parser.error("--data is needed to train")
        study = arguments.study
        folders = [STUDIES[study].write(arguments.data, seed) for seed in range(arguments.seeds)]
        variants = arguments.only or (READINGS if arguments.readings else VARIANTS)
        runs = [run_of(study, variant, seed, folder) for seed, folder in enumerate(folders) for variant in variants]
        with ThreadPoolExecutor(arguments.jobs) as pool:
            for line in pool.map(train, runs):
                print(line, flush=True)
    print_table(ALL, read_results(RESULTS / (arguments.table or arguments.study)))


def run_of(study: str, variant: str, seed: int, folder: Path) -> Run:
    """The variant's training in the study."""
    name = file_name(variant, seed)
    model = STUDIES[study].model + ("-bn" if variant.split(",")[0] == "BN" else "")
    settings = (f"model={model}", *STUDIES[study].settings, *ALL[variant], f"seed={seed}")
    settings += (f"data.seed={seed}",) if STUDIES[study].held_out else ()
    return Run(variant, seed, "image-folder", settings, folder, WORK / study / name, RESULTS / study / f"{name}.json")


SMALL = ("data.image_size=32", "epochs=60", "schedule.evaluate_every=20")
HALF_CUTOUT = ("views.cutout=8",)  # of the recipe's 16, as the images have half the height and width
PLAIN_VIEWS = ("views.autoaugment=false", "views.cutout=0")
HALF_SIZE = (
    "data.image_size=16",
    "epochs=60",
    "schedule.evaluate_every=10",
    "batch_size=128",
    "views.crop=padded",
    "views.padding=2",
)
STUDIES: Mapping[str, Study] = {
    "small": Study(small_set, "resnet20", SMALL),
    "small-plain-views": Study(small_set, "resnet20", (*SMALL, *PLAIN_VIEWS)),
    "small-resnet8": Study(small_set, "resnet8", SMALL),
    "recipe": Study(small_set, "resnet32", ("data.image_size=32", "schedule.evaluate_every=50")),
    "short": Study(small_set, "resnet32", ("data.image_size=32", "epochs=30", "schedule.evaluate_every=10")),
    "wide": Study(wide_set, "resnet32", ("data.image_size=32", "epochs=80", "schedule.evaluate_every=20")),
    "small-long": Study(small_set, "resnet20", (*SMALL, "epochs=180")),
    "small-long-plain-views": Study(small_set, "resnet20", (*SMALL, "epochs=180", *PLAIN_VIEWS)),
    "half-size": Study(half_size, "resnet8", (*HALF_SIZE, *PLAIN_VIEWS)),
    "half-size-400": Study(
        half_size, "resnet20", (*HALF_SIZE, *HALF_CUTOUT, "epochs=400", "schedule.evaluate_every=20")
    ),
    "solar": Study(solar_cells, "resnet32", ("epochs=30", "schedule.evaluate_every=10"), held_out=True),
    "half-size-resnet20": Study(half_size, "resnet20", (*HALF_SIZE, *PLAIN_VIEWS)),
}


if __name__ == "__main__":
    main()
