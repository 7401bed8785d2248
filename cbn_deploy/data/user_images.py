"""A user's own images, ready to train on: listed, checked, split, labelled by number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cbn_deploy.data.image_folder import TEST_NAMES, find_split, list_class_folders, list_image_folder
from cbn_deploy.data.image_list import find_list, list_image_lists
from cbn_deploy.data.image_set import FileImageSet, LongTailedData
from cbn_deploy.data.listing import LabelledFile, Listing, check_utf8, hold_out, spelling
from cbn_deploy.data.problems import class_problems
from cbn_deploy.data.published_lists import find_published_test_list, published_test_images
from cbn_deploy.errors import DataError
from cbn_deploy.runtime.description import Preprocessing

__all__ = ["list_images", "load_image_folder", "load_test_images"]


def list_images(data_dir: Path) -> Listing:
    """The files of ``data_dir``: by ``train.csv`` / ``train.txt`` if there, else a folder per class.

    Test images are those of ``test`` (list or folder), or else of ``val``, ``valid`` or ``validation``.

    Raises:
        DataError: there is neither, a list or folder cannot be read, or a folder's name is not UTF-8.
    """
    data_dir = Path(data_dir)
    if not data_dir.is_dir():
        raise DataError(f"{data_dir} is not a folder; give the folder that holds train/CLASS/* or train.csv.")
    check_utf8(data_dir.resolve())  # the data set is called by it
    train_list = find_list(data_dir, "train")
    if train_list is not None:
        return list_image_lists(train_list, find_list(data_dir, *TEST_NAMES))
    return list_image_folder(data_dir)


def load_image_folder(
    data_dir: Path, preprocessing: Preprocessing, *, seed: int = 0, cache_bytes: int = 0
) -> LongTailedData:
    """Train and test images of a folder (see :func:`list_images`); without test images, see ``hold_out``.

    Args:
        data_dir: the folder.
        preprocessing: the model's input size and normalisation.
        seed: of the hold-out split.
        cache_bytes: memory bound for resized images (see ``FileImageSet``).

    Raises:
        DataError: nothing to train on, a class without training images, a listed file that does not exist.
    """
    listing = list_images(data_dir)
    _check(listing)
    train = list(listing.train)
    if listing.test is None:
        train_indices, test_indices = hold_out(_labels(train, listing.class_names), seed)
        train, test = [train[i] for i in train_indices], [train[i] for i in test_indices]
    else:
        test = list(listing.test)

    def image_set(files: Sequence[LabelledFile]) -> FileImageSet:
        return FileImageSet(
            [file.path for file in files], _labels(files, listing.class_names), preprocessing, cache_bytes
        )

    return LongTailedData(
        name=listing.root.resolve().name,
        train=image_set(train),
        test=image_set(test),
        class_names=listing.class_names,
        preprocessing=preprocessing,
    )


def load_test_images(data_dir: Path, class_names: Sequence[str], preprocessing: Preprocessing) -> FileImageSet:
    """The test images of ``data_dir`` for a model with these classes: no training images are needed.

    They are ``test.csv`` / ``test.txt``, else the published test list of ImageNet-LT, Places-LT or iNaturalist 2018,
    else ``val.csv`` and the like, else ``test/CLASS/*`` or ``val/CLASS/*``, else ``data_dir/CLASS/*``.

    Raises:
        DataError: no such images, training images alone, or a class that the model does not know.
    """
    data_dir = Path(data_dir)
    test_list = find_list(data_dir, "test")
    published = None if test_list is not None else find_published_test_list(data_dir)
    if published is not None:
        return published_test_images(*published, data_dir, class_names, preprocessing)
    test_list = test_list or find_list(data_dir, *TEST_NAMES)
    if test_list is not None:
        files: Sequence[LabelledFile] = list_image_lists(test_list, class_names=class_names).train
    else:
        spell = spelling(class_names)
        files = [
            LabelledFile(file.path, spell(file.label)) for file in list_class_folders(_test_folder(data_dir)).files
        ]
    if not files:
        raise DataError(f"{data_dir} has no test images; expected {data_dir}/test/CLASS/*.jpg (or .png, .webp, .bmp).")
    unknown = sorted({file.label for file in files} - set(class_names))
    if unknown:
        raise DataError(f"{data_dir} has the class {unknown[0]!r}, which the model does not know; remove or rename it.")
    return FileImageSet([file.path for file in files], _labels(files, class_names), preprocessing)


def _test_folder(data_dir: Path) -> Path:
    if not data_dir.is_dir():
        raise DataError(f"{data_dir} is not a folder; give the folder that holds test/CLASS/*.")
    test = find_split(data_dir, *TEST_NAMES)
    if test is None and (find_split(data_dir, "train") or find_list(data_dir, "train")):
        raise DataError(
            f"{data_dir} has training images only, and not as many of each class as the model was trained and tested "
            "on; give a folder of test images (cbn-eval also takes --recipe image-folder, and --set data.seed=N if "
            "the run had it)."
        )
    return test or data_dir


def _check(listing: Listing) -> None:
    train = Counter(file.label for file in listing.train)
    test = None if listing.test is None else Counter(file.label for file in listing.test)
    problems = class_problems(str(listing.root), listing.class_names, train, test)
    if problems:
        raise DataError(problems[0])
    missing = next((file.path for file in (*listing.train, *(listing.test or ())) if not _exists(file.path)), None)
    if missing is not None:
        if _is_link(missing):
            raise DataError(f"{missing} is a link to a file that does not exist; remove it or its line in the list.")
        raise DataError(f"{missing} is listed but does not exist; correct the list.")


def _exists(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name too long for the file system, a folder without permission
        return False


def _is_link(path: Path) -> bool:
    try:
        return path.is_symlink()
    except OSError:
        return False


def _labels(files: Sequence[LabelledFile], class_names: Sequence[str]) -> NDArray[np.int64]:
    number = {name: label for label, name in enumerate(class_names)}
    return np.asarray([number[file.label] for file in files], dtype=np.int64)
