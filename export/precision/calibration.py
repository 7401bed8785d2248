"""Which images set the ranges of an int8 file's activations: real ones, of every class alike, none of the test set."""

from __future__ import annotations

import hashlib
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cbn_deploy.data import FileImageSet, ImageSet
from cbn_deploy.errors import DataError
from cbn_deploy.runtime.description import ModelDescription
from cbn_deploy.training.test_set import find_training_set
from export.inputs import image_files
from export.precision.images import digest

__all__ = ["CALIBRATION_IMAGES", "Calibration", "calibration_images", "choose_calibration"]

CALIBRATION_IMAGES = 512
_SEED = 0


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The chosen images.

    Attributes:
        source: where they are from, in words.
        images: uint8 (n, H, W, 3) at the model's size, n >= 1.
        in_test_set: how many candidates were passed over because the test set has them.
        sha256: of their sorted digests, in hexadecimal.
    """

    source: str
    images: NDArray[np.uint8]
    in_test_set: int
    sha256: str


def choose_calibration(
    description: ModelDescription, folder: Path | None, data: str, test_digests: Set[bytes]
) -> Calibration:
    """Up to 512 different images, from every class as many as from the others while it has any.

    Args:
        description: of the model.
        folder: a folder of images, or a folder with a folder per class; ``None``: the training images of ``data``.
        data: the data set that the model is tested on (:func:`find_training_set`).
        test_digests: of the test images, which must not be among them: the accuracy gate would judge the file by
            images that it was fitted to.

    Raises:
        DataError: no image, none outside the test set, or one that cannot be read.
    """
    preprocessing = description.preprocessing
    images, source = calibration_images(description, folder, data)
    chosen: dict[bytes, NDArray[np.uint8]] = {}
    in_test_set = 0
    for index in _class_by_class(images.labels):
        image = images.resized(int(index), preprocessing)
        key = digest(image)
        if key in test_digests:
            in_test_set += 1
        else:
            chosen.setdefault(key, image)
        if len(chosen) == CALIBRATION_IMAGES:
            break
    if not chosen:
        raise DataError(
            f"All {in_test_set} calibration images are in the test set too, which is to judge the file; give "
            "--calibration other images, such as training images."
        )
    return Calibration(
        source=source,
        images=np.stack(list(chosen.values())),
        in_test_set=in_test_set,
        sha256=hashlib.sha256(b"".join(sorted(chosen))).hexdigest(),
    )


def calibration_images(description: ModelDescription, folder: Path | None, data: str) -> tuple[ImageSet, str]:
    """All candidates, and where they are from in words; those of a folder are labelled by the folder that they are in.

    Raises:
        DataError: there are none.
    """
    if folder is None:
        images, name = find_training_set(description, data)
        return images, f"training images of {name}"
    paths = image_files(folder)
    _, labels = np.unique([str(path.parent) for path in paths], return_inverse=True)
    return FileImageSet(paths, labels, description.preprocessing), f"images of {folder.resolve().name}"


def _class_by_class(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """All indices: a random one of every class, then another of every class that has one, and so on."""
    shuffled = np.random.default_rng(_SEED).permutation(len(labels))
    rank = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        members = shuffled[labels[shuffled] == label]
        rank[members] = np.arange(len(members))
    return shuffled[np.argsort(rank[shuffled], kind="stable")].astype(np.int64)
