"""Find the images for a finished model, which knows its classes and preprocessing but not where its data lie."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cbn_deploy.data import (
    ImageSet,
    LongTailedData,
    load_cifar_lt,
    load_data,
    load_digits_lt,
    load_image_folder,
    load_test_images,
)
from cbn_deploy.data.image_folder import TEST_NAMES, find_split
from cbn_deploy.data.listing import held_out_counts
from cbn_deploy.errors import DataError
from cbn_deploy.runtime import ModelDescription
from cbn_deploy.training.recipe import Recipe

__all__ = ["DIGITS", "find_test_set", "find_training_set", "recipe_test_set"]

DIGITS = "digits"


def find_test_set(description: ModelDescription, data: str) -> ImageSet:
    """The test images at ``data``, by what lies there.

    - ``"digits"``: the test images of digits-lt (as its recipe draws them with ``data.seed=0``);
    - a folder that holds (or is) files named ``cifar*``, for a model of 10 or 100 classes: that CIFAR test set;
    - any other folder: see :func:`cbn_deploy.data.load_test_images`.

    Raises:
        DataError: no test images there, their classes are not the model's, or it was trained on most of them.
    """
    known = _known_data(description, data)
    if known is not None:
        return known.test
    images = load_test_images(Path(data), description.class_names, description.preprocessing)
    if find_split(Path(data), *TEST_NAMES) is None:
        _check_not_trained_on(description, images, data)
    return images


def find_training_set(description: ModelDescription, data: str) -> tuple[ImageSet, str]:
    """The training images at ``data``, by what lies there (see :func:`find_test_set`), and the data set's name.

    Of a folder they are ``train.csv`` / ``train.txt`` or ``train/CLASS/*``, beside test images of their own.

    Raises:
        DataError: no training images there, or their classes are not the model's.
    """
    known = _known_data(description, data)
    if known is None:
        folder = Path(data)
        if not any((folder / name).exists() for name in ("train", "train.csv", "train.txt")):
            raise DataError(
                f"{folder} has no training images; give --calibration a folder of images to calibrate with."
            )
        known = _of_same_classes(load_image_folder(folder, description.preprocessing), description.class_names)
    return known.train, known.name


def _known_data(description: ModelDescription, data: str) -> LongTailedData | None:
    """The digits or CIFAR, if that is what lies at ``data``; ``None`` for a folder of other images."""
    if data == DIGITS:
        return _of_same_classes(load_digits_lt(), description.class_names)
    folder = Path(data)
    if not folder.exists():
        raise DataError(f"{folder} does not exist; give --data a folder of test images, or {DIGITS!r}.")
    classes = len(description.class_names)
    if _holds_cifar(folder) and classes in (10, 100):
        data_set = load_cifar_lt("cifar10" if classes == 10 else "cifar100", folder)
        return _of_same_classes(data_set, description.class_names)
    return None


def recipe_test_set(description: ModelDescription, recipe: Recipe, data: str | None) -> ImageSet:
    """The test images exactly as ``recipe`` splits them, also where they were held out of the training images.

    Raises:
        DataError: the data cannot be loaded, or their classes are not the model's.
    """
    folder = None if data in (None, DIGITS) else Path(str(data))
    return _of_same_classes(load_data(recipe.data, folder), description.class_names).test


def _check_not_trained_on(description: ModelDescription, images: ImageSet, data: str) -> None:
    """Folders of classes may be the very ones that the model was trained on, less what was held out of them."""
    counts = np.bincount(images.labels, minlength=len(description.class_names))
    if np.array_equal(counts - held_out_counts(counts), description.class_counts):
        raise DataError(
            f"{data} has exactly as many images of each class as the model was trained and tested on; to evaluate on "
            "those that were held out, add --recipe image-folder (and --set data.seed=N if the run had it). Other "
            "images go into a folder named test."
        )


def _holds_cifar(folder: Path) -> bool:
    return folder.name.startswith("cifar") or any(folder.glob("cifar*"))


def _of_same_classes(data: LongTailedData, class_names: Sequence[str]) -> LongTailedData:
    if data.class_names != tuple(class_names):
        raise DataError(
            f"The model's classes ({_some(class_names)}) are not those of {data.name} ({_some(data.class_names)}); "
            "give --data the images that the model was made for."
        )
    return data


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f", ... {len(names)} in all" if len(names) > 3 else "")
