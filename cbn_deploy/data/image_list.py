"""Lists of images: ``path label`` a line (text), or ``path,label`` a row (CSV).

A label is a class name or a 0-based index. If every label is a number they are indices, and a ``classes.txt`` beside
the list (one name a line) names them; otherwise labels are names, in natural order unless ``classes.txt`` orders them.
Paths are relative to the folder of the (training) list, which they must not leave. A CSV may begin with a heading; if
it names one column of paths and one of labels in usual words, those are read, in any order and among others.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath

from cbn_deploy.data.labelled_list import MAX_CLASSES, leaves_root, read_text, shown, text_lines
from cbn_deploy.data.listing import LabelledFile, Listing, distinct, natural_sorted, spelling
from cbn_deploy.data.problems import spelled_twice
from cbn_deploy.errors import DataError
from cbn_deploy.runtime.preprocessing import IMAGE_SUFFIXES

__all__ = ["find_list", "list_image_lists", "read_class_names"]

# What people and programs call the columns, but for case, spaces and underscores.
_PATH_WORDS = frozenset({"path", "image", "file", "filename", "filepath", "imagepath", "imagefile", "imagename"})
_LABEL_WORDS = frozenset({"label", "class", "classname", "category", "target"})
_POSITIONS = (["path", "label"], 0, 1)


def find_list(data_dir: Path, *names: str) -> Path | None:
    """``data_dir/NAME.csv`` or ``NAME.txt`` of the first name that has one."""
    candidates = (data_dir / f"{name}.{ending}" for name in names for ending in ("csv", "txt"))
    return next((path for path in candidates if path.is_file()), None)


def list_image_lists(
    train_list: Path,
    test_list: Path | None = None,
    class_names: Sequence[str] | None = None,
) -> Listing:
    """Read one or two lists, with paths relative to the folder of the first; opens no image.

    Args:
        train_list: CSV (by its ending) or text.
        test_list: the same for the test images.
        class_names: in place of ``classes.txt``.

    Raises:
        DataError: a list cannot be read, is empty, or a line is malformed or points outside the folder.
    """
    root = train_list.parent
    names = read_class_names(train_list.parent / "classes.txt") if class_names is None else list(class_names)
    train = _read(train_list, root)
    test = None if test_list is None else _read(test_list, root)
    spell = spelling(distinct(label for _, label in (*train, *(test or []))) if names is None else names)
    train = [(path, spell(label)) for path, label in train]
    test = None if test is None else [(path, spell(label)) for path, label in test]
    both = [*train, *(test or [])]
    labels = {label for _, label in both}
    as_indices = all(map(_is_index, labels)) and not (names and labels.issubset(names))
    if as_indices:
        names = names or _numbered(train_list, labels)
    elif names is None:
        names = _named(train_list, labels)
    known = set(names)

    def labelled(rows: list[tuple[Path, str]], source: Path) -> tuple[LabelledFile, ...]:
        return tuple(LabelledFile(path, _label_name(label, names, known, as_indices, source)) for path, label in rows)

    return Listing(
        root=root,
        class_names=tuple(names),
        train=labelled(train, train_list),
        test=None if test is None or test_list is None else labelled(test, test_list),
        test_source=None if test_list is None else test_list.name,
    )


def _read(path: Path, root: Path) -> list[tuple[Path, str]]:
    text = read_text(path)
    rows = list(_csv_rows(path, text, root) if path.suffix.lower() == ".csv" else _text_rows(path, text))
    if not rows:
        raise DataError(f"The list {path} is empty; expected a line 'path label' for each image.")
    return [(_inside(root, name, path, number), label) for number, name, label in rows]


def _text_rows(path: Path, text: str) -> Iterator[tuple[int, str, str]]:
    for number, line in enumerate(text_lines(text), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        parts = line.strip().rsplit(maxsplit=1)
        if len(parts) != 2:
            raise DataError(
                f"{path}, line {number}: expected 'path label', got {shown(line.strip())}; put a space or a tab "
                "between the two, or call a list with commas .csv."
            )
        yield number, parts[0], parts[1]


def _csv_rows(path: Path, text: str, root: Path) -> Iterator[tuple[int, str, str]]:
    heading, name, label = _POSITIONS
    for index, (number, cells) in enumerate(_csv_cells(path, text)):
        if index == 0 and _is_heading(cells[0], root):
            heading, name, label = _columns(cells)
            continue
        if len(cells) != len(heading) or not (cells[name] and cells[label]):
            expected, got = ",".join(heading), ",".join(cells)
            advice = _advice(got, cells, heading)
            raise DataError(f"{path}, line {number}: expected {shown(expected)}, got {shown(got)}; {advice}.")
        yield number, cells[name], cells[label]


def _csv_cells(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """The rows that are not blank, each with the line that it begins in: a quoted cell may have several lines."""
    reader = csv.reader(io.StringIO(text, newline=""))
    begins = 1
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            if any(cells):
                yield begins, cells
            begins = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}, line {begins}: {error}; see whether a quotation mark is missing.") from error


def _advice(row: str, cells: list[str], heading: list[str]) -> str:
    """What to do about a row that does not fit the heading."""
    for separator, called in ((";", "semicolons"), ("\t", "tabs")):
        if len(cells) < len(heading) and separator in row:
            return f"columns are separated by commas, not {called}"
    if len(cells) > len(heading):
        return "leave these columns only, name all in a heading (one path, one label), or quote a path with commas"
    return "columns are separated by commas, and path and label must not be empty"


def _is_heading(cell: str, root: Path) -> bool:
    """Whether the first cell of a CSV names a column, as people and programs call it, and no image."""
    # Path.is_file() would raise for a name that is too long for the file system.
    return PurePath(cell).suffix.lower() not in IMAGE_SUFFIXES and not os.path.isfile(root / cell)  # noqa: PTH113


def _columns(heading: list[str]) -> tuple[list[str], int, int]:
    """The columns there are, and the places of paths and labels: by their names, or else a path and a label."""
    words = ["".join(filter(str.isalnum, cell.casefold())) for cell in heading]
    names, labels = ([i for i, word in enumerate(words) if word in known] for known in (_PATH_WORDS, _LABEL_WORDS))
    return (heading, names[0], labels[0]) if len(names) == len(labels) == 1 else _POSITIONS


def _inside(root: Path, name: str, source: Path, number: int) -> Path:
    """``root / name``, refused if it leaves the root; links inside the root are the user's own business."""
    if "\\" in name:
        name = _portable(root, name)
    if leaves_root(name):
        raise DataError(f"{source}, line {number}: {shown(name)} lies outside {root}; paths must be relative to it.")
    return root / os.path.normpath(name)


def _portable(root: Path, name: str) -> str:
    """A path as Windows writes it, with ``/``, if a file is there; elsewhere a backslash may be part of a name."""
    slashed = name.replace("\\", "/")
    # Path.is_file() would raise for a name that is too long for the file system.
    is_file = not leaves_root(slashed) and os.path.isfile(root / slashed)  # noqa: PTH113
    return slashed if is_file and not os.path.isfile(root / name) else name  # noqa: PTH113


def read_class_names(path: Path) -> list[str] | None:
    """``classes.txt``: one name a line, in label order; ``None`` if there is no such file.

    Raises:
        DataError: it cannot be read, or names a class twice, be it in two forms of Unicode.
    """
    if not path.is_file():
        return None
    names = [line.strip() for line in text_lines(read_text(path)) if line.strip()]
    twice = spelled_twice(names)
    if twice:
        raise DataError(f"{path} names a class twice, {shown(twice[0])}; class names must differ.")
    return names


def _is_index(label: str) -> bool:
    return label.isascii() and label.isdigit()


def _number(label: str) -> int:
    """A label of digits as a number; ten digits stand for all longer ones, thousands of which int() refuses."""
    digits = label.lstrip("0")
    return int(digits or "0") if len(digits) < 10 else 10**9


def _numbered(source: Path, labels: set[str]) -> list[str]:
    """Names for classes that have numbers only."""
    highest = max(labels, key=_number)
    if _number(highest) >= MAX_CLASSES:
        raise DataError(f"{source}: label {shown(highest)} is too large; labels are class names or 0-based indices.")
    numbers = {_number(label) for label in labels}
    if 0 not in numbers:
        raise DataError(
            f"{source}: the labels go from {min(numbers)} to {max(numbers)}, but numbers count the classes from 0; "
            "number them from 0, or write each into classes.txt beside the list, one a line, and they are taken as "
            "names."
        )
    return [str(index) for index in range(max(numbers) + 1)]


def _named(source: Path, labels: set[str]) -> list[str]:
    """Names for classes that only the labels name."""
    if len(labels) > MAX_CLASSES:
        raise DataError(
            f"{source}: {len(labels)} different labels are more than {MAX_CLASSES} classes; write the path before the "
            "label, or say in a CSV's heading which column is the path and which the label."
        )
    return natural_sorted(labels)


def _label_name(label: str, names: list[str], known: set[str], as_index: bool, source: Path) -> str:
    if as_index and _number(label) < len(names):
        return names[_number(label)]
    if not as_index and label in known:
        return label
    counted = ", which numbers count from 0" if as_index else ""
    raise DataError(
        f"{source}: label {shown(label)} is none of the {len(names)} known classes{counted}; correct it or classes.txt."
    )
