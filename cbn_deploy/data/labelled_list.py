"""Read a list of images as the long-tail literature writes them: ``path label`` a line, labels 0 ... K-1."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from cbn_deploy.errors import DataError

__all__ = ["MAX_CLASSES", "LabelledList", "leaves_root", "read_labelled_list", "read_text", "shown", "text_lines"]

# A class beyond this index is a damaged list, not a data set (the largest public one has 21,841).
MAX_CLASSES = 100_000


@dataclass(frozen=True, kw_only=True)
class LabelledList:
    """One list, read and checked line by line; whether its files exist is another question.

    Attributes:
        source: the list file.
        names: n paths as they are written, relative, ``/`` between their parts.
        labels: int64 (n,), 0 ... K-1.
        lines: int64 (n,), the line of each in the file, from 1.
    """

    source: Path
    names: tuple[str, ...]
    labels: NDArray[np.int64]
    lines: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.names)

    def where(self, index: int) -> str:
        """ "LIST, line 7": for messages."""
        return f"{self.source}, line {self.lines[index]}"


def read_labelled_list(source: Path) -> LabelledList:
    """Read a text file of ``path label`` lines. Empty lines, a byte-order mark and Windows' line ends do no harm.

    Raises:
        DataError: the file cannot be read or has no line; a line is not ``path label``, its label is no whole number
            from 0, or its path is absolute or leaves the folder (``..``). The message names file and line.
    """
    names, labels, lines = [], [], []
    for number, name, label in _rows(source):
        names.append(name)
        labels.append(label)
        lines.append(number)
    if not names:
        raise DataError(f"The list {source} is empty; expected a line 'path label' for each image.")
    return LabelledList(
        source=source,
        names=tuple(names),
        labels=np.asarray(labels, dtype=np.int64),
        lines=np.asarray(lines, dtype=np.int64),
    )


def _rows(source: Path) -> Iterator[tuple[int, str, int]]:
    for number, line in enumerate(text_lines(read_text(source)), start=1):
        parts = line.split()
        if not parts:
            continue
        if len(parts) != 2:
            raise DataError(
                f"{source}, line {number}: expected 'path label', with no space in the path, got {shown(line)}."
            )
        name, label = parts
        # ASCII digits only, and never so many that int() would refuse them.
        if not (label.isascii() and label.isdigit()) or len(label) > 9 or int(label) >= MAX_CLASSES:
            raise DataError(
                f"{source}, line {number}: the label {shown(label)} is not a whole number in 0 ... {MAX_CLASSES - 1}."
            )
        if leaves_root(name):
            raise DataError(
                f"{source}, line {number}: {shown(name)} is absolute or leaves the data folder; paths must be "
                "relative to it."
            )
        yield number, name, int(label)


def read_text(source: Path) -> str:
    """A list's text: UTF-8, with or without a byte-order mark, its line ends as they are in the file.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        with source.open(encoding="utf-8-sig", newline="") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"Cannot read the list {source} ({error}); save it as UTF-8 text.") from error


def text_lines(text: str) -> list[str]:
    """The lines of a text without their ends, which are those of Unix, Windows and old Macs."""
    # str.splitlines() ends a line at U+0085, U+2028 and others, too, which may be part of a file's name.
    return re.split(r"\r\n|\r|\n", text)


def leaves_root(name: str) -> bool:
    """Whether ``root / name`` would lie outside ``root``; links inside the root are the user's own business."""
    if name.startswith("/") or "\0" in name or (":" in name and Path(name).is_absolute()):
        return True
    if ".." not in name:
        return False
    depth = 0
    for part in PurePosixPath(name.replace("\\", "/")).parts:
        depth += -1 if part == ".." else 1
        if depth < 0:
            return True
    return depth == 0


def shown(text: str) -> str:
    """What a list says, quoted for a message; of a long text the beginning."""
    return repr(text if len(text) <= 80 else text[:77] + "...")
