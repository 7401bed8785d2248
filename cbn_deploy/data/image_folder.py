"""A folder per class: ``DATA/train/CLASS/*`` and, if there is one, ``DATA/test/CLASS/*``."""

from __future__ import annotations

from pathlib import Path

from cbn_deploy.data.listing import LabelledFile, Listing, natural_sorted
from cbn_deploy.errors import DataError
from cbn_deploy.runtime.preprocessing import IMAGE_SUFFIXES

__all__ = ["list_class_folders", "list_image_folder"]


def list_image_folder(data_dir: Path) -> Listing:
    """List ``data_dir/train`` and ``data_dir/test``; classes in natural order. Opens no image.

    Raises:
        DataError: there is no ``train`` folder with class folders in it, or a folder cannot be read.
    """
    train = data_dir / "train"
    if not train.is_dir():
        raise DataError(
            f"{data_dir} has no train folder; expected {train}/CLASS/*.jpg (or .png, .webp, .bmp), or a list "
            f"{data_dir}/train.csv or train.txt."
        )
    train_classes, train_files, ignored = list_class_folders(train)
    test_files = None
    test_classes: list[str] = []
    if (data_dir / "test").is_dir():
        test_classes, test_files, test_ignored = list_class_folders(data_dir / "test")
        ignored += test_ignored
    return Listing(
        root=data_dir,
        class_names=tuple(natural_sorted({*train_classes, *test_classes})),
        train=tuple(train_files),
        test=None if test_files is None else tuple(test_files),
        ignored=tuple(ignored),
    )


def list_class_folders(split: Path) -> tuple[list[str], list[LabelledFile], list[Path]]:
    """Class names (also of empty folders), their image files at any depth, and files that are no images.

    Hidden files and folders are passed over.

    Raises:
        DataError: ``split`` has no class folder, or cannot be read.
    """
    try:
        classes = natural_sorted(e.name for e in split.iterdir() if e.is_dir() and not e.name.startswith("."))
        if not classes:
            raise DataError(f"{split} has no class folders; expected {split}/CLASS/*.jpg (or .png, .webp, .bmp).")
        files: list[LabelledFile] = []
        ignored: list[Path] = []
        for label in classes:
            for path in _visible_files(split / label):
                if path.suffix.lower() in IMAGE_SUFFIXES:
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
