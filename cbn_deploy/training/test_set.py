"""Find the images for a finished model, which knows its classes and preprocessing but not where its data lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
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
from cbn_deploy.data.cifar import Kind, holds_cifar
from cbn_deploy.data.image_folder import TEST_NAMES, find_split
from cbn_deploy.data.image_list import find_list
from cbn_deploy.data.listing import held_out_counts
from cbn_deploy.data.published_lists import find_published_test_list
from cbn_deploy.errors import DataError
from cbn_deploy.runtime import ModelDescription
from cbn_deploy.training.recipe import Recipe

__all__ = ["DIGITS", "doubt_about", "find_test_set", "find_training_set", "recipe_test_set", "with_seed_of"]

DIGITS = "digits"


def find_test_set(description: ModelDescription, data: str) -> ImageSet:
    """The test images at ``data``, by what lies there.

    - ``"digits"``: the test images of digits-lt, as drawn with the model's ``data_seed`` (0 where it is not known);
    - a folder that :func:`cbn_deploy.data.load_cifar_lt` reads, for a model of 10 or 100 classes: that CIFAR test set;
    - the images of the model's training, of which a part was held out: that part, if the model knows its ``data_seed``;
    - any other folder: see :func:`cbn_deploy.data.load_test_images`.

    Raises:
        DataError: no test images there, their classes are not the model's, or it was trained on most of them.
    """
    known = _known_data(description, data)
    if known is not None:
        return known.test
    images = load_test_images(Path(data), description.class_names, description.preprocessing)
    if not _holds_test_set(Path(data)):
        _check_not_trained_on(description, images, data)
    return images


def doubt_about(description: ModelDescription, images: ImageSet, data: str) -> str | None:
    """What to tell a person about ``images``, which :func:`find_test_set` found: are they those of the training?

    Class folders alone do not say what they are for. Where every class has at least the images that the model was
    trained on, they are most likely the folder that it was trained on, to which images were added.
    """
    if data == DIGITS or _cifar_kind(description, Path(data)) is not None or _holds_test_set(Path(data)):
        return None
    counts = np.bincount(images.labels, minlength=len(description.class_names))
    if np.any(counts < description.class_counts):
        return None
    return (
        f"{data} has no folder or list named test, and of every class at least as many images as the model was trained "
        "on; if they are the images of its training, these figures are too good. Name a folder of other images."
    )


def find_training_set(description: ModelDescription, data: str) -> tuple[ImageSet, str]:
    """The training images at ``data``, by what lies there (see :func:`find_test_set`), and the data set's name.

    Of a folder they are ``train.csv`` / ``train.txt`` or ``train/CLASS/*``, beside test images of their own.

    Raises:
        DataError: no training images there, or their classes are not the model's.
    """
    known = _known_data(description, data)
    if known is None:
        folder = Path(data)
        if find_list(folder, "train") is None and find_split(folder, "train") is None:
            raise DataError(
                f"{folder} has no training images; give --calibration a folder of images to calibrate with."
            )
        known = _of_same_classes(load_image_folder(folder, description.preprocessing), description.class_names)
    return known.train, known.name


def _known_data(description: ModelDescription, data: str) -> LongTailedData | None:
    """The digits, CIFAR or what the model was trained on, if that lies at ``data``; ``None`` for other images."""
    if data == DIGITS:
        return _of_same_classes(load_digits_lt(seed=description.data_seed or 0), description.class_names)
    folder = Path(data)
    if not folder.exists():
        raise DataError(f"{folder} does not exist; give --data a folder of test images, or {DIGITS!r}.")
    kind = _cifar_kind(description, folder)
    if kind is not None:
        return _of_same_classes(load_cifar_lt(kind, folder), description.class_names)
    return _as_held_out(description, folder)


def _as_held_out(description: ModelDescription, folder: Path) -> LongTailedData | None:
    """The images of ``folder`` split as in the model's training, if there are as many of each class as there were."""
    if description.data_seed is None or not folder.is_dir() or _holds_test_set(folder):
        return None
    try:
        split = load_image_folder(folder, description.preprocessing, seed=description.data_seed)
    except DataError:
        return None  # it may still be test images, which need not be of every class
    same = (split.class_names, split.class_counts) == (description.class_names, description.class_counts)
    return split if same else None


def recipe_test_set(description: ModelDescription, recipe: Recipe, data: str | None) -> ImageSet:
    """The test images exactly as ``recipe`` splits them, also where they were held out of the training images.

    Raises:
        DataError: the data cannot be loaded, their classes are not the model's, or they are not split as for its
            training, so that images that it was trained on could be among the test images.
    """
    seed, other = description.data_seed, recipe.data.seed
    if seed not in (None, other):
        raise DataError(
            f"The model was trained with data.seed={seed}; data.seed={other} draws other test images, some of which it "
            "was trained on, so leave out --set data.seed."
        )
    folder = None if data in (None, DIGITS) else Path(str(data))
    split = _of_same_classes(load_data(recipe.data, folder), description.class_names)
    for name, now, then in zip(split.class_names, split.class_counts, description.class_counts, strict=True):
        if now != then:
            raise DataError(
                f"{recipe.name} has {now} training images of class {name!r} here, the model was trained on {then}, so "
                "the test images are not those of its training; repeat its --set on the images that there were, or "
                "leave out --recipe if there are test images of their own."
            )
    return split.test


def with_seed_of(description: ModelDescription, recipe: Recipe) -> Recipe:
    """``recipe`` with the data seed of the model's training, where the model knows it."""
    seed = description.data_seed
    return recipe if seed is None else replace(recipe, data=replace(recipe.data, seed=seed))


def _check_not_trained_on(description: ModelDescription, images: ImageSet, data: str) -> None:
    """Folders of classes may be the very ones that the model was trained on, less what was held out of them."""
    counts = np.bincount(images.labels, minlength=len(description.class_names))
    if np.array_equal(counts - held_out_counts(counts), description.class_counts):
        raise DataError(
            f"{data} has exactly as many images of each class as the model was trained and tested on, but the model "
            "does not know which were held out; put other images into a folder named test, or have cbn-eval hold out "
            "the same with --recipe image-folder (and --set data.seed=N if the run had it)."
        )


def _holds_test_set(folder: Path) -> bool:
    """Whether something at ``folder`` says that it is for testing, see :func:`cbn_deploy.data.load_test_images`."""
    if folder.resolve().name.lower() in TEST_NAMES:
        return True
    lists = find_list(folder, *TEST_NAMES), find_published_test_list(folder)
    return any(found is not None for found in (*lists, find_split(folder, *TEST_NAMES)))


def _cifar_kind(description: ModelDescription, folder: Path) -> Kind | None:
    """Which of the CIFAR sets lies at ``folder``, for a model of so many classes; ``None`` for images in files."""
    kinds: dict[int, Kind] = {10: "cifar10", 100: "cifar100"}
    kind = kinds.get(len(description.class_names))
    return kind if kind is not None and holds_cifar(kind, folder) else None


def _of_same_classes(data: LongTailedData, class_names: Sequence[str]) -> LongTailedData:
    if data.class_names != tuple(class_names):
        raise DataError(
            f"The model's classes ({_some(class_names)}) are not those of {data.name} ({_some(data.class_names)}); "
            "give --data the images that the model was made for."
        )
    return data


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f", ... {len(names)} in all" if len(names) > 3 else "")
