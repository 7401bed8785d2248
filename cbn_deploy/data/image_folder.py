"""A folder per class: ``DATA/train/CLASS/*`` and, if there is one, ``DATA/test/CLASS/*``; or ``DATA/CLASS/*``."""

from __future__ import annotations

from pathlib import Path

from cbn_deploy.data.listing import LabelledFile, Listing, check_utf8, natural_sorted
from cbn_deploy.errors import DataError
from cbn_deploy.runtime.preprocessing import IMAGE_SUFFIXES

__all__ = ["TEST_NAMES", "find_split", "list_class_folders", "list_image_folder"]

TEST_NAMES = ("test", "val", "valid", "validation")
"""What the folder of the test images may be called. Nothing is chosen by them, so a validation set will do."""


def list_image_folder(data_dir: Path) -> Listing:
    """List the training and test folders of ``data_dir``; classes in natural order. Opens no image.

    Without a ``train`` folder the folders in ``data_dir`` are the classes, if images lie in at least one of them.

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
    train_classes, train_files, ignored = list_class_folders(train)
    test_files = None
    test_classes: list[str] = []
    if test is not None:
        test_classes, test_files, test_ignored = list_class_folders(test)
        ignored += test_ignored
    return Listing(
        root=data_dir,
        class_names=tuple(natural_sorted({*train_classes, *test_classes})),
        train=tuple(train_files),
        test=None if test_files is None else tuple(test_files),
        ignored=tuple(ignored),
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
    try:
        return any(_is_image(path) for path in folder.glob("[!.]*/[!.]*"))
    except OSError as error:
        raise DataError(f"Cannot read {error.filename or folder}: {error.strerror or error}.") from error


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES


def list_class_folders(split: Path) -> tuple[list[str], list[LabelledFile], list[Path]]:
    """Class names (also of empty folders), their image files at any depth, and files that are no images.

    Hidden files and folders are passed over.

    Raises:
        DataError: ``split`` has no class folder, one whose name is not UTF-8, or cannot be read.
    """
    try:
        classes = natural_sorted(e.name for e in split.iterdir() if e.is_dir() and not e.name.startswith("."))
        if not classes:
            raise DataError(f"{split} has no class folders; expected {split}/CLASS/*.jpg (or .png, .webp, .bmp).")
        files: list[LabelledFile] = []
        ignored: list[Path] = []
        for label in classes:
            check_utf8(split / label)
            for path in _visible_files(split / label):
                if _is_image(path):
                    files.append(LabelledFile(path, label))
                else:
                    ignored.append(path)
    except OSError as error:
        raise DataError(f"Cannot read {error.filename or split}: {error.strerror or error}.") from error
    return classes, files, ignored


def _visible_files(folder: Path) -> list[Path]:
    found = []
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        # A broken link stays in: loading it names it, which beats losing an image silently.
        if not hidden and (path.is_file() or path.is_symlink()):
            found.append(path)
    return found
