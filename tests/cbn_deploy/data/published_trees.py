"""Small image trees and lists in exactly the layouts of ImageNet-LT, Places-LT and iNaturalist 2018."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

# (listed path, label) by split. Training counts are 6, 3 and 2 a class; the test is balanced, as published.
Rows = dict[str, list[tuple[str, int]]]
COUNTS = (6, 3, 2)


def imagenet_rows() -> Rows:
    """``train/SYNSET/SYNSET_n.JPEG``; the val split is of training images, the test split ImageNet's validation."""
    synsets = ("n01440764", "n01443537", "n01484850")
    rows: Rows = {"train": [], "val": [], "test": []}
    for label, (synset, count) in enumerate(zip(synsets, COUNTS, strict=True)):
        rows["train"] += [(f"train/{synset}/{synset}_{n}.JPEG", label) for n in range(count)]
        rows["val"] += [(f"train/{synset}/{synset}_{n}.JPEG", label) for n in (90,)]
        rows["test"] += [(f"val/{synset}/ILSVRC2012_val_{label:04}{n:04}.JPEG", label) for n in range(2)]
    return rows


PLACES = ("airfield", "parking_garage-indoor", "yard")


def places_rows() -> Rows:
    """As the lists for places365standard_easyformat are written: ``train/CLASS/n.jpg``, ``val/CLASS/...``."""
    rows: Rows = {"train": [], "val": [], "test": []}
    # The classes of Places-LT are not ordered by frequency.
    for label, (place, count) in enumerate(zip(PLACES, (3, 6, 2), strict=True)):
        rows["train"] += [(f"train/{place}/{n:08}.jpg", label) for n in range(count)]
        rows["val"] += [(f"train/{place}/{n:08}.jpg", label) for n in (90,)]
        rows["test"] += [(f"val/{place}/Places365_val_{label:04}{n:04}.jpg", label) for n in range(2)]
    return rows


def places_v2_rows() -> Rows:
    """The same images as the second version of the lists names them: ``data_256/a/airfield/n.jpg``, ``val_256/...``."""

    def renamed(path: str) -> str:
        split, place, file = path.split("/")
        return f"val_256/{file}" if split == "val" else f"data_256/{place[0]}/{place.replace('-', '/')}/{file}"

    return {split: [(renamed(path), label) for path, label in rows] for split, rows in places_rows().items()}


def inaturalist_rows() -> Rows:
    """``train_val2018/SUPERCATEGORY/CATEGORY/HASH.jpg``; the val list is the test."""
    rows: Rows = {"train": [], "val": []}
    for label, (group, count) in enumerate(zip(("Plantae", "Insecta", "Aves"), COUNTS, strict=True)):
        rows["train"] += [(f"train_val2018/{group}/{label}/{label:04x}{n:04x}.jpg", label) for n in range(count)]
        rows["val"] += [(f"train_val2018/{group}/{label}/{label:04x}{n:04x}ff.jpg", label) for n in range(2)]
    return rows


NAMES = {
    "imagenet-lt": "ImageNet_LT_{}.txt",
    "places-lt": "Places_LT_{}.txt",
    "inaturalist2018": "iNaturalist18_{}.txt",
}


def write_lists(folder: Path, source: str, rows: Rows) -> None:
    """The list files, under their published names."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, entries in rows.items():
        text = "".join(f"{path} {label}\n" for path, label in entries)
        (folder / NAMES[source].format(split)).write_text(text)


def write_images(root: Path, rows: Rows, size: tuple[int, int] = (50, 38)) -> None:
    """A JPEG for every row, each with pixels of its own."""
    seed = 0
    for entries in rows.values():
        for path, _ in entries:
            seed += 1
            file = root / path
            file.parent.mkdir(parents=True, exist_ok=True)
            coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
