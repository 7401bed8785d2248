"""A user's own images before any is opened: which files, which class, which split."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cbn_deploy.data.problems import NONE_TO_HOLD_OUT
from cbn_deploy.errors import DataError

__all__ = [
    "LabelledFile",
    "Listing",
    "check_utf8",
    "distinct",
    "held_out_counts",
    "hold_out",
    "natural_sorted",
    "printable",
    "spelling",
]

_HELD_OUT_PART, _MOST_HELD_OUT = 4, 50


@dataclass(frozen=True)
class LabelledFile:
    """One image file and the name of its class."""

    path: Path
    label: str


@dataclass(frozen=True)
class Listing:
    """The files of a data set.

    Attributes:
        root: what the user calls the data set.
        class_names: every class of either split, in label order.
        train: training files.
        test: test files; ``None`` if the user gave none.
        ignored: files in the folders that are no images by their name.
        runs: folders beside the classes that hold results of cbn-train.
        hidden: folders beside the classes that hold images but are hidden by their names.
        test_source: name of the folder or list of the test images.
    """

    root: Path
    class_names: tuple[str, ...]
    train: tuple[LabelledFile, ...]
    test: tuple[LabelledFile, ...] | None
    ignored: tuple[Path, ...] = ()
    runs: tuple[Path, ...] = ()
    hidden: tuple[Path, ...] = ()
    test_source: str | None = None


def natural_sorted(names: Iterable[str]) -> list[str]:
    """Sort as people count: "class2" before "class10", case ignored."""

    def number(digits: str) -> tuple[int, int, str]:
        # Of two numbers the longer is the larger; int() refuses thousands of digits.
        digits = digits.lstrip("0")
        return 0, len(digits), digits

    def key(name: str) -> tuple[list[tuple[int, int, str]], str]:
        parts = re.findall(r"[0-9]+|[^0-9]+", name.casefold())
        return [number(part) if part[0] in "0123456789" else (1, 0, part) for part in parts], name

    return sorted(names, key=key)


def distinct(names: Iterable[str]) -> list[str]:
    """Of names that a person would call the same (see :func:`spelling`) the first."""
    first: dict[str, str] = {}
    for name in names:
        first.setdefault(unicodedata.normalize("NFC", name), name)
    return list(first.values())


def spelling(names: Iterable[str]) -> Callable[[str], str]:
    """A function from a class name to the one of ``names`` that a person would call the same; others stay as they are.

    An accented letter is one character or two, by who wrote it: macOS takes names apart, most others do not.
    """
    names = list(names)
    same = {unicodedata.normalize("NFC", name): name for name in names} | {name: name for name in names}
    return lambda name: same.get(name, same.get(unicodedata.normalize("NFC", name), name))


def check_utf8(folder: Path) -> None:
    """Refuse a folder whose name no report could hold: names in a file system are bytes, of any encoding.

    Raises:
        DataError: the name is not UTF-8.
    """
    try:
        folder.name.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"The name of the folder {printable(folder)} is not UTF-8; rename the folder.") from error


def printable(path: Path | str) -> str:
    """A path as text that every terminal takes; bytes that are not UTF-8 are written as ``\\xe9``."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def held_out_counts(counts: NDArray[np.integer]) -> NDArray[np.int64]:
    """Of ``counts`` (K,) images of each class, how many :func:`hold_out` takes: a quarter, at least 1, at most 50.

    A class with a single image keeps it for training.
    """
    held_out = np.where(counts < 2, 0, np.clip(counts // _HELD_OUT_PART, 1, _MOST_HELD_OUT))
    return held_out.astype(np.int64)


def hold_out(labels: NDArray[np.integer], seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split off a test set of :func:`held_out_counts` images.

    One ``RandomState(seed)``, classes ascending, per class a shuffle of its indices: the first go to the test.

    Args:
        labels: (n,) classes 0 ... K-1.
        seed: the same seed and labels always give the same split.

    Returns:
        Indices of the training and of the test images, int64, ascending.

    Raises:
        DataError: no class has two images.
    """
    counts = np.bincount(labels)
    if counts.max() < 2:
        raise DataError(NONE_TO_HOLD_OUT)
    held_out = held_out_counts(counts)
    random_state = np.random.RandomState(seed)
    test = []
    for label in range(len(counts)):
        indices = np.flatnonzero(labels == label)
        random_state.shuffle(indices)
        test.append(indices[: held_out[label]])
    chosen = np.sort(np.concatenate(test)).astype(np.int64)
    return np.setdiff1d(np.arange(len(labels), dtype=np.int64), chosen), chosen
