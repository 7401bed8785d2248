"""Small long-tailed sets of photographs as a folder per class, as a user brings them: batch norm beside CBN.

    python benchmarks/photo_folders.py --data DIR --sets 3 --jobs 2
    python benchmarks/photo_folders.py --table

A set is ten random classes of CIFAR-100 with 250 to 5 training images (rho 50; 694 in all) and all of their 1,000 test
images, written as PNG into train/CLASS and test/CLASS. Every run is `cbn-train image-folder` at 32 pixels, ResNet-20
60 epochs, everything else as the recipe has it (:mod:`training_runs`); the seed of set k is k.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from training_runs import ROOT, Run, file_name, print_table, read_results, train

from cbn_deploy.atomic import atomic_folder
from cbn_deploy.data import DataConfig, ImageSet, load_data, long_tail_counts

WORK = ROOT / "runs" / "photo-folders"
RESULTS = ROOT / "benchmarks" / "results" / "photo_folders"

CLASSES, MOST_IMAGES, RHO = 10, 250, 50
FIXED = ("model=resnet20", "data.image_size=32", "epochs=60", "schedule.evaluate_every=20")
BATCH_NORM = "model=resnet20-bn"
VARIANTS: Mapping[str, tuple[str, ...]] = {
    "BN": (BATCH_NORM, "loss.paths=compound"),
    "BN, two views": (BATCH_NORM, "loss.paths=two_views"),
    "CBN": ("loss.paths=compound",),
    "CBN, two views": ("loss.paths=two_views",),
    "CBN + SBN + DPL": (),
    "BN + SBN + DPL": ("components=1", "norm.split_groups=4"),
}


def main() -> None:
    """Run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with the CIFAR-100 files, as for cbn-train")
    parser.add_argument("--table", action="store_true", help="print the table of the finished runs and stop")
    parser.add_argument("--only", nargs="+", metavar="VARIANT", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--sets", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    if not arguments.table:
        if arguments.data is None:
            parser.error("--data is needed to train")
        folders = [write_set(arguments.data, number) for number in range(arguments.sets)]
        runs = [run_of(variant, number, folder) for number, folder in enumerate(folders) for variant in arguments.only]
        with ThreadPoolExecutor(arguments.jobs) as pool:
            for line in pool.map(train, runs):
                print(line, flush=True)
    print_table(VARIANTS, read_results(RESULTS))


def run_of(variant: str, number: int, folder: Path) -> Run:
    """The variant's training on that set."""
    name = file_name(variant, number)
    settings = (*FIXED, *VARIANTS[variant], f"seed={number}")
    return Run(variant, number, "image-folder", settings, folder, WORK / name, RESULTS / f"{name}.json")


def write_set(data: Path, number: int) -> Path:
    """The folder of set `number`, written unless it is there."""
    folder = WORK / f"set-{number}"
    if folder.is_dir():
        return folder
    cifar = load_data(DataConfig(source="cifar100-lt", rho=10), data)
    rich = np.flatnonzero(np.asarray(cifar.class_counts) >= MOST_IMAGES)
    chosen = np.random.default_rng(number).choice(rich, CLASSES, replace=False)
    counts = long_tail_counts(MOST_IMAGES, RHO, CLASSES)
    WORK.mkdir(parents=True, exist_ok=True)
    with atomic_folder(folder) as fresh:
        for label, count in zip(chosen, counts, strict=True):
            name = cifar.class_names[label]
            write_images(cifar.train, label, count, fresh / "train" / name)
            write_images(cifar.test, label, None, fresh / "test" / name)
    return folder


def write_images(images: ImageSet, label: int, count: int | None, folder: Path) -> None:
    """The first `count` images of a class (None: all) as PNG."""
    folder.mkdir(parents=True)
    for index in np.flatnonzero(images.labels == label)[:count]:
        Image.fromarray(images.pixels(int(index))).save(folder / f"{index}.png")


if __name__ == "__main__":
    main()
