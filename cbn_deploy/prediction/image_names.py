"""Which images: all below a folder, or those that a text file lists. Opens no image, keeps no list in memory."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from cbn_deploy.errors import CorruptImageError, DataError, ImageTooLargeError
from cbn_deploy.runtime.preprocessing import IMAGE_SUFFIXES

__all__ = ["image_names", "image_root", "read_image"]


def image_root(source: Path) -> Path:
    """The folder that the names of :func:`image_names` are relative to.

    Raises:
        DataError: ``source`` is neither a folder nor a file.
    """
    if source.is_dir():
        return source
    if source.is_file():
        return source.parent
    raise DataError(f"{source} does not exist; give a folder of images, or a text file with the path of one a line.")


def image_names(source: Path) -> Iterator[str]:
    """Names of the image files, ``/`` between their parts, in an order that depends on nothing but the names.

    Of a folder: every file below it whose suffix is an image's, hidden files and folders passed over; links to files
    are followed, links to folders are not.
    Of a text file in UTF-8: its lines as they are, relative to its folder, whatever their suffix; empty ones left out.

    Raises:
        DataError: a folder or the list cannot be read.
    """
    try:
        yield from _below(source, "") if source.is_dir() else _listed(source)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"The images of {source} cannot be listed ({error}); correct that and try again.") from error


def read_image(path: Path, max_bytes: int) -> bytes:
    """The content of an image file, whose size is looked at before it is read.

    Raises:
        ImageError: it cannot be read, is no ordinary file or too large.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise CorruptImageError("It is not an ordinary file.")
        if status.st_size > max_bytes:
            raise ImageTooLargeError(f"The image has {status.st_size} bytes; at most {max_bytes} are accepted.")
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a zero byte in a listed name
        reason = error.strerror if isinstance(error, OSError) else None
        raise CorruptImageError(f"The file cannot be read ({reason or error}).") from error


def _below(folder: Path, prefix: str) -> Iterator[str]:
    with os.scandir(folder) as entries:
        visible = (entry for entry in entries if not entry.name.startswith("."))
        found = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in visible)
    for name, is_folder in found:
        if not is_folder and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:  # noqa: PTH122 - a million names
            yield prefix + name
    for name, is_folder in found:
        if is_folder:
            yield from _below(folder / name, f"{prefix}{name}/")


def _listed(source: Path) -> Iterator[str]:
    with source.open(encoding="utf-8-sig") as lines:
        for line in lines:
            if name := line.rstrip("\r\n"):
                yield name
