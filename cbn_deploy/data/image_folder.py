"""A folder per class: ``DATA/train/CLASS/*`` and, if there is one, ``DATA/test/CLASS/*``; or ``DATA/CLASS/*``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from cbn_deploy.data.listing import LabelledFile, Listing, check_utf8, natural_sorted, spelling
from cbn_deploy.errors import DataError
from cbn_deploy.runtime.preprocessing import IMAGE_SUFFIXES

__all__ = ["TEST_NAMES", "ClassFolders", "find_split", "list_class_folders", "list_image_folder"]

TEST_NAMES = ("test", "val", "valid", "validation")
"""What the folder of the test images may be called. Nothing is chosen by them, so a validation set will do."""

# What cbn-train writes from the first step of a run on. Its default --out is ./runs, which lies among the classes where
# --data is the working directory; the report's plots would make a class of it.
_RUN_FILES = frozenset({"last.pt", "metrics.jsonl"})

# Device and number, or the real path.
_Identity = tuple[int, int] | Path


@dataclass(frozen=True, kw_only=True)
class ClassFolders:
    """What lies in a folder of class folders.

    Attributes:
        names: of the classes, also of those without images, in natural order.
        files: the images, class by class.
        ignored: files that are no images by their name.
        runs: folders that are no classes, because results of cbn-train lie in them.
        hidden: folders with images that are no classes, because their names begin with a dot.
    """

    names: tuple[str, ...]
    files: tuple[LabelledFile, ...]
    ignored: tuple[Path, ...]
    runs: tuple[Path, ...]
    hidden: tuple[Path, ...]


def list_image_folder(data_dir: Path) -> Listing:
    """List the training and test folders of ``data_dir``; classes in natural order. Opens no image.

    Without a ``train`` folder the folders in ``data_dir`` are the classes, if images lie right in one of them or
    at any depth in two.

    Raises:
        DataError: there are no class folders, or a folder cannot be read.
    """
    train, test = find_split(data_dir, "train"), find_split(data_dir, *TEST_NAMES)
    if train is None:
        if test is not None or not _holds_class_folders(data_dir):
            raise DataError(
                f"{data_dir} has no train folder; expected {data_dir}/train/CLASS/*.jpg (or .png, .webp, .bmp), "
                f"{data_dir}/CLASS/*.jpg, or a list {data_dir}/train.csv or train.txt."
            )
        train = data_dir
    splits = [list_class_folders(split) for split in (train, test) if split is not None]
    spell = spelling(splits[0].names)
    return Listing(
        root=data_dir,
        class_names=tuple(natural_sorted({spell(name) for split in splits for name in split.names})),
        train=splits[0].files,
        test=None if test is None else tuple(LabelledFile(f.path, spell(f.label)) for f in splits[1].files),
        ignored=tuple(path for split in splits for path in split.ignored),
        runs=tuple(path for split in splits for path in split.runs),
        hidden=tuple(path for split in splits for path in split.hidden),
        test_source=None if test is None else test.name,
    )


def find_split(data_dir: Path, *names: str) -> Path | None:
    """The folder in ``data_dir`` with the first of these names that there is, upper and lower case alike.

    Raises:
        DataError: ``data_dir`` cannot be read.
    """
    try:
        folders = {entry.name.lower(): entry for entry in sorted(data_dir.iterdir()) if entry.is_dir()}
    except OSError as error:
        raise DataError(f"Cannot read {error.filename or data_dir}: {error.strerror or error}.") from error
    return next((folders[name] for name in names if name in folders), None)


def _holds_class_folders(folder: Path) -> bool:
    """Whether images lie right in a class folder, or below two of them.

    Images that lie deeper in the only folder there is are more likely those of a data set one folder further down.
    """
    try:
        classes = [e for e in sorted(folder.iterdir()) if e.is_dir() and not e.name.startswith(".")]
        if any(_is_image(path) for name in classes for path in name.glob("[!.]*")):
            return True
        return sum(1 for _ in islice(filter(_holds_image, classes), 2)) == 2
    except OSError as error:
        raise DataError(f"Cannot read {error.filename or folder}: {error.strerror or error}.") from error


def _holds_image(folder: Path) -> bool:
    return any(_is_image(path) for path in _visible_files(folder))


def _may_hold_image(folder: Path) -> bool:
    # A system's own folders, such as .Trashes, cannot be read by everyone, which is no reason to refuse the classes.
    try:
        return _holds_image(folder)
    except OSError:
        return False


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES


def list_class_folders(split: Path) -> ClassFolders:
    """The classes in ``split`` and their files at any depth.

    Hidden files and folders are passed over; of those among the classes the ones with images are named.

    Raises:
        DataError: ``split`` has no class folder, one whose name is not UTF-8, or cannot be read.
    """
    try:
        folders = natural_sorted(entry.name for entry in split.iterdir() if entry.is_dir())
        visible = [name for name in folders if not name.startswith(".")]
        contents = {name: sorted(_visible_files(split / name)) for name in visible}
    except OSError as error:
        raise DataError(f"Cannot read {error.filename or split}: {error.strerror or error}.") from error
    runs = [name for name, paths in contents.items() if any(path.name in _RUN_FILES for path in paths)]
    classes = {name: paths for name, paths in contents.items() if name not in runs}
    if not classes:
        raise DataError(f"{split} has no class folders; expected {split}/CLASS/*.jpg (or .png, .webp, .bmp).")
    for name in classes:
        check_utf8(split / name)
    return ClassFolders(
        names=tuple(classes),
        files=tuple(LabelledFile(path, name) for name, paths in classes.items() for path in paths if _is_image(path)),
        ignored=tuple(path for paths in classes.values() for path in paths if not _is_image(path)),
        runs=tuple(split / name for name in runs),
        hidden=tuple(split / name for name in folders if name.startswith(".") and _may_hold_image(split / name)),
    )


def _visible_files(folder: Path) -> Iterator[Path]:
    """The files below ``folder``, a folder at a time; linked folders are followed.

    Every folder is read once, in its own place if it has one below ``folder``, so links in a circle come to an end.
    """
    # Not again, and not a folder above: it holds the other classes.
    passed_over = set(_folders_above(folder))
    folders, links = [folder], list[Path]()
    while folders or links:
        current = folders.pop() if folders else links.pop(0)
        identity = _identity(current)
        if identity in passed_over:
            continue
        passed_over.add(identity)
        for path in sorted(current.iterdir()):
            if path.name.startswith("."):
                continue
            if path.is_dir():
                (links if path.is_symlink() else folders).append(path)
            # A broken link stays in: loading it names it, which beats losing an image silently.
            elif path.is_file() or path.is_symlink():
                yield path


def _folders_above(folder: Path) -> Iterator[_Identity]:
    for above in folder.resolve().parents:
        with suppress(OSError):  # what cannot be looked at cannot be read through a link either
            yield _identity(above)


def _identity(folder: Path) -> _Identity:
    """What tells a folder from every other, by whatever path it is reached."""
    status = folder.stat()
    # Some file systems number none. Real paths would do everywhere, but take the square of the depth.
    return (status.st_dev, status.st_ino) if status.st_ino else folder.resolve()
