"""Load ImageNet-LT, Places-LT or iNaturalist 2018: their lists, wherever their images lie."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cbn_deploy.data.file_paths import FilePaths
from cbn_deploy.data.image_list import read_class_names
from cbn_deploy.data.image_set import FileImageSet, LongTailedData
from cbn_deploy.data.labelled_list import LabelledList, read_labelled_list
from cbn_deploy.data.published_sets import AS_LISTED, PUBLISHED_SETS, Layout, PublishedSet, Split
from cbn_deploy.errors import DataError
from cbn_deploy.runtime.description import Preprocessing

__all__ = [
    "FileFacts",
    "PlacedList",
    "PublishedListing",
    "file_facts",
    "find_published_test_list",
    "list_published",
    "load_published",
    "published_test_images",
]

# Enough to tell layouts apart even where some files are missing.
_PROBED_FILES = 50
# Waiting for a network file system takes no processor; a local one answers a thread at a time anyway.
_STAT_THREADS = 32
_STAT_CHUNK = 1000


@dataclass(frozen=True, kw_only=True)
class PlacedList:
    """One list and where its files lie.

    Attributes:
        rows: the list.
        layout: the layout in which most of a sample of its files were found.
        paths: n files, in that layout.
    """

    rows: LabelledList
    layout: Layout
    paths: FilePaths


@dataclass(frozen=True, kw_only=True)
class PublishedListing:
    """A data set's lists before any image is opened.

    Attributes:
        published: what the literature says about it.
        root: the folder of the images.
        class_names: K names in label order, K from the training list; a label that it leaves out is named "".
        splits: the lists that are there; "train" and the test list always are.
    """

    published: PublishedSet
    root: Path
    class_names: tuple[str, ...]
    splits: Mapping[Split, PlacedList]


@dataclass(frozen=True)
class FileFacts:
    """What the file system says about n files.

    Attributes:
        sizes: int64 (n,), bytes; -1 for a file that is not there (or is no file).
        identities: n (device, inode) pairs; two names with one identity are one file.
    """

    sizes: NDArray[np.int64]
    identities: tuple[tuple[int, int], ...]


def list_published(published: PublishedSet, data_dir: Path, lists_dir: Path | None = None) -> PublishedListing:
    """Find and read the lists, name the classes, recognise the layout of the images.

    Args:
        published: which set.
        data_dir: the folder that the lists' paths are relative to.
        lists_dir: the folder of the lists; ``data_dir`` if ``None``. Either may hold them in ``published.folders``.

    Raises:
        DataError: a folder or list is missing, a line is malformed, or labels and class folders contradict each other.
    """
    if not data_dir.is_dir():
        raise DataError(f"{data_dir} is not a folder; give the folder of {published.title}'s images with --data.")
    folder = _lists_folder(published, data_dir if lists_dir is None else lists_dir)
    rows: dict[Split, LabelledList] = {}
    for split, name in published.lists.items():
        if split in ("train", published.test) or (folder / name).is_file():
            rows[split] = read_labelled_list(folder / name)
    folders = _class_folders(published, rows["train"])
    names = read_class_names(folder / "classes.txt")
    if names is None:
        _check_class_folders(published, rows["train"], folders)
    class_names = folders if names is None else tuple(names)
    label_of = _labels_of_folders(published, rows["train"])
    for split, part in rows.items():
        _check_labels(part, class_names)
        if split != "train":
            _check_same_classes(published, part, label_of, "restore the lists of one edition")
    return PublishedListing(
        published=published,
        root=data_dir,
        class_names=class_names,
        splits={split: _place(part, published, data_dir, folders) for split, part in rows.items()},
    )


def load_published(
    published: PublishedSet, data_dir: Path, preprocessing: Preprocessing, lists_dir: Path | None = None
) -> LongTailedData:
    """Train and test images of a published set; every listed file is looked for, none is opened.

    Args:
        published: which set.
        data_dir: the folder that the lists' paths are relative to.
        preprocessing: the model's input size and normalisation.
        lists_dir: the folder of the lists; ``data_dir`` if ``None``.

    Raises:
        DataError: as :func:`list_published`; or a class without training images, or files that are not there.
    """
    listing = list_published(published, data_dir, lists_dir)
    counts = np.bincount(listing.splits["train"].rows.labels, minlength=len(listing.class_names))
    if len(counts) < 2 or not counts.all():
        empty = np.flatnonzero(counts == 0)
        raise DataError(
            f"{listing.splits['train'].rows.source} has no image of label {empty[0]}, one of {len(empty)} such labels; "
            "restore the list."
            if len(empty)
            else f"{listing.splits['train'].rows.source} has 1 class; a classifier needs at least 2."
        )

    def image_set(split: Split) -> FileImageSet:
        placed = listing.splits[split]
        _check_files(placed)
        return FileImageSet(placed.paths, placed.rows.labels, preprocessing)

    return LongTailedData(
        name=published.title,
        train=image_set("train"),
        test=image_set(published.test),
        class_names=listing.class_names,
        preprocessing=preprocessing,
    )


def find_published_test_list(data_dir: Path) -> tuple[PublishedSet, Path] | None:
    """The published set whose test list lies in ``data_dir`` (or where its lists usually do), and that list."""
    for published in PUBLISHED_SETS.values():
        for folder in (data_dir, *(data_dir / name for name in published.folders)):
            path = folder / published.lists[published.test]
            if path.is_file():
                return published, path
    return None


def published_test_images(
    published: PublishedSet, test_list: Path, data_dir: Path, class_names: Sequence[str], preprocessing: Preprocessing
) -> FileImageSet:
    """The test images for a model with these classes, whose labels are the list's; the training list is not needed.

    Raises:
        DataError: the list is malformed, its classes are not the model's, or files are missing.
    """
    rows = read_labelled_list(test_list)
    _check_labels(rows, class_names)
    label_of = {name: label for label, name in enumerate(class_names)}
    _check_same_classes(published, rows, label_of, "take the lists that the model was trained on")
    placed = _place(rows, published, data_dir, class_names)
    _check_files(placed)
    return FileImageSet(placed.paths, rows.labels, preprocessing)


def file_facts(paths: FilePaths) -> FileFacts:
    """Look at every file's entry, many at a time."""
    starts = range(0, len(paths), _STAT_CHUNK)
    with ThreadPoolExecutor(_STAT_THREADS) as pool:
        facts = [fact for chunk in pool.map(lambda start: _stat_chunk(paths, start), starts) for fact in chunk]
    return FileFacts(
        sizes=np.asarray([size for size, _ in facts], dtype=np.int64),
        identities=tuple(identity for _, identity in facts),
    )


def _stat_chunk(paths: FilePaths, start: int) -> list[tuple[int, tuple[int, int]]]:
    folder = f"{paths.root}/"
    return [_stat(folder + name) for name in paths.names(start, start + _STAT_CHUNK)]


def _stat(path: str) -> tuple[int, tuple[int, int]]:
    try:
        entry = os.stat(path)  # noqa: PTH116  half a million Path objects would take longer than their files
    except (OSError, ValueError):  # not there, a name too long for the file system, a folder without permission
        return -1, (0, 0)
    return (entry.st_size, (entry.st_dev, entry.st_ino)) if stat.S_ISREG(entry.st_mode) else (-1, (0, 0))


def _lists_folder(published: PublishedSet, folder: Path) -> Path:
    needed = [published.lists["train"], published.lists[published.test]]
    for candidate in (folder, *(folder / name for name in published.folders)):
        if all((candidate / name).is_file() for name in needed):
            return candidate
    raise DataError(
        f"{folder} does not hold {published.title}'s lists; expected {' and '.join(needed)} there or in "
        f"{' or '.join(f'{name}/' for name in published.folders)}; say where they are with --set data.lists=DIR."
    )


def _class_folders(published: PublishedSet, train: LabelledList) -> tuple[str, ...]:
    """The folder of each label's first image; "" for a label without images or without a folder."""
    folders = [""] * (int(train.labels.max()) + 1)
    for _, folder, label in _first_lines(published, train):
        folders[label] = folders[label] or folder
    return tuple(folders)


def _check_class_folders(published: PublishedSet, train: LabelledList, folders: Sequence[str]) -> None:
    """Without a classes.txt, folders name the classes: every label has one of its own."""
    label_of = {folder: label for label, folder in reversed(list(enumerate(folders)))}
    advice = "correct the list, or name the classes in a classes.txt beside it"
    for index, folder, label in _first_lines(published, train):
        where = train.where(index)
        if not folder:
            raise DataError(f"{where}: {train.names[index]} lies in no class folder; {advice}.")
        if folder != folders[label]:
            raise DataError(f"{where}: label {label} is {folder} here but {folders[label]} before; {advice}.")
        if label_of[folder] != label:
            raise DataError(f"{where}: {folder} has label {label} here but {label_of[folder]} elsewhere; {advice}.")


def _labels_of_folders(published: PublishedSet, train: LabelledList) -> dict[str, int]:
    """The label of every folder that holds images of one class; with a classes.txt they need not."""
    labels: dict[str, set[int]] = {}
    for _, folder, label in _first_lines(published, train):
        labels.setdefault(folder, set()).add(label)
    return {folder: min(found) for folder, found in labels.items() if folder and len(found) == 1}


def _check_same_classes(published: PublishedSet, rows: LabelledList, label_of: Mapping[str, int], advice: str) -> None:
    """A list gives the folders of ``label_of`` the labels that they have there; other folders say nothing."""
    for index, folder, label in _first_lines(published, rows):
        if label_of.get(folder, label) != label:
            raise DataError(
                f"{rows.where(index)}: {rows.names[index]} has label {label}, but {folder} is class "
                f"{label_of[folder]} of the training; {advice}."
            )


def _first_lines(published: PublishedSet, rows: LabelledList) -> Iterator[tuple[int, str, int]]:
    """(index, class folder, label) of the first line of every combination of folder and label."""
    seen = set()
    for index, (path, label) in enumerate(zip(rows.names, rows.labels.tolist(), strict=True)):
        key = path[: path.rfind("/") + 1], label
        if key not in seen:
            seen.add(key)
            yield index, published.class_name(path), label


def _check_labels(rows: LabelledList, class_names: Sequence[str]) -> None:
    index = int(rows.labels.argmax())
    if rows.labels[index] >= len(class_names):
        raise DataError(
            f"{rows.where(index)}: label {rows.labels[index]} is none of the {len(class_names)} known classes, "
            f"0 ... {len(class_names) - 1}; use lists (and a classes.txt) that belong together."
        )


def _place(rows: LabelledList, published: PublishedSet, root: Path, folders: Sequence[str]) -> PlacedList:
    """In the layout in which most of a sample of the files are found; as listed where none is."""
    probed = np.unique(np.linspace(0, len(rows) - 1, _PROBED_FILES).astype(int)).tolist()

    def placed(layout: Layout, indices: Sequence[int]) -> Iterator[str]:
        return (layout.place(rows.names[i], folders[rows.labels[i]]) for i in indices)

    def found(layout: Layout) -> int:
        return int((file_facts(FilePaths(root, placed(layout, probed))).sizes >= 0).sum())

    layout = max(published.layouts, key=found)  # the first of equals: as listed
    names = rows.names if layout is AS_LISTED else placed(layout, range(len(rows)))
    return PlacedList(rows=rows, layout=layout, paths=FilePaths(root, names))


def _check_files(placed: PlacedList) -> None:
    unusable = np.flatnonzero(file_facts(placed.paths).sizes <= 0)
    if len(unusable):
        index = int(unusable[0])
        raise DataError(
            f"{placed.rows.where(index)}: {placed.paths[index]} is missing or empty, one of {len(unusable)} of "
            f"{len(placed.rows)} files; --data must be the folder that the list's paths begin in (--check says more)."
        )
