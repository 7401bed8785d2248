"""The image sets of photo_folders.py, written as a user has them: a folder per class.

Each is written once, into runs/photo-folders; the second call finds it.
"""

from __future__ import annotations

import csv
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from training_runs import ROOT

from cbn_deploy.atomic import atomic_folder
from cbn_deploy.data import DataConfig, ImageSet, load_data, long_tail_counts

WORK = ROOT / "runs" / "photo-folders"


def small_set(data: Path, seed: int) -> Path:
    """Ten random classes of CIFAR-100."""
    return _random_classes(data, seed, 10, WORK / f"small-{seed}")


def wide_set(data: Path, seed: int) -> Path:
    """25 of them."""
    return _random_classes(data, seed, 25, WORK / f"wide-{seed}")


def _random_classes(data: Path, seed: int, number: int, folder: Path) -> Path:
    cifar = load_data(DataConfig(source="cifar100-lt", rho=10), data)
    counts = long_tail_counts(250, 50, number)
    rich = np.flatnonzero(np.asarray(cifar.class_counts) >= counts[0])
    classes = np.random.default_rng(seed).choice(rich, len(counts), replace=False)
    return write_folder(
        folder,
        cifar.train,
        cifar.test,
        cifar.class_names,
        dict(zip(classes.tolist(), counts, strict=True)),
    )


def half_size(data: Path, seed: int) -> Path:
    """CIFAR-10-LT, the same for every seed; cbn-train makes the images smaller."""
    del seed
    cifar = load_data(DataConfig(source="cifar10-lt", rho=100), data)
    return write_folder(
        WORK / "cifar10-lt", cifar.train, cifar.test, cifar.class_names, dict(enumerate(cifar.class_counts))
    )


def write_folder(
    folder: Path, train: ImageSet, test: ImageSet, names: Sequence[str], counts: Mapping[int, int]
) -> Path:
    """The first images of the classes, label -> how many, and all test images, as PNG; done before: nothing to do."""
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(folder) as fresh:
        for label, count in counts.items():
            for part, images, most in (("train", train, count), ("test", test, None)):
                place = fresh / part / names[label]
                place.mkdir(parents=True)
                for index in np.flatnonzero(images.labels == label)[:most]:
                    Image.fromarray(images.pixels(int(index))).save(place / f"{index:05d}.png")
    return folder


# Labels of the ELPV data set: the probability, as experts gave it, that the cell is defective.
CONDITIONS = {0: "functional", 1: "perhaps-defective", 2: "likely-defective", 3: "defective"}


def solar_cells(data: Path, seed: int) -> Path:
    """2,624 solar cells by electroluminescence, 300 x 300 pixels, grey: two kinds x four conditions, 920 to 50 images.

    Long-tailed by nature, and no photographs. ``data`` is the folder ``elpv_dataset/data`` of the package elpv-dataset
    (Deitsch et al., "Automatic classification of defective photovoltaic module cells in electroluminescence images",
    2019). No test folder: cbn-train holds images out.
    """
    del seed
    folder = WORK / "solar-cells"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(folder) as fresh, (data / "labels.csv").open() as lines:
        for name, probability, kind in csv.reader(lines, delimiter=" ", skipinitialspace=True):
            place = fresh / f"{kind}-{CONDITIONS[round(3 * float(probability))]}"
            place.mkdir(exist_ok=True)
            shutil.copy(data / name, place)
    return folder
