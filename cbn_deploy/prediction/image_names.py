"""Which images: all below a folder, or those that a text file lists. Opens no image, keeps no list in memory."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from cbn_deploy.errors import CorruptImageError, DataError
from cbn_deploy.runtime.preprocessing import IMAGE_SUFFIXES, check_byte_count

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

    Of a folder: every file below it whose suffix is an image's, hidden files and folders passed over. Links are
    followed, but every folder is read once: in its own place if it has a visible one, else through the first link to
    it. So links in a circle come to an end. Links to the folders that ``source`` lies in are not followed.
    Of a text file in UTF-8: its lines as they are, relative to its folder, whatever their suffix; empty ones left out.

    Raises:
        DataError: a folder or the list cannot be read.
    """
    try:
        yield from _Walk(source).names() if source.is_dir() else _listed(source)
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
        check_byte_count(status.st_size, max_bytes)
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a zero byte in a listed name
        reason = error.strerror if isinstance(error, OSError) else None
        raise CorruptImageError(f"The file cannot be read ({reason or error}).") from error


class _Walk:
    """The image names below ``folder``. Held in memory: the entries of the folders being read, and followed links."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._real = Path(os.path.realpath(folder))
        # The real folders where reading began: the first one, and those that followed links lead to.
        self._begun = {self._real}

    def names(self) -> Iterator[str]:
        return self._below(self._folder, self._real, "")

    def _below(self, folder: Path, real: Path, prefix: str) -> Iterator[str]:
        with os.scandir(folder) as entries:
            visible = (entry for entry in entries if not entry.name.startswith("."))
            found = sorted((entry.name, _is_folder(entry), entry.is_symlink()) for entry in visible)
        for name, is_folder, _ in found:
            if not is_folder and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:  # noqa: PTH122 - a million names
                yield prefix + name
        for name, is_folder, is_link in found:
            if not is_folder:
                continue
            inner = Path(os.path.realpath(folder / name)) if is_link else real / name
            if self._is_read_elsewhere(inner, is_link):
                continue
            if is_link:
                self._begun.add(inner)
            yield from self._below(folder / name, inner, f"{prefix}{name}/")

    def _is_read_elsewhere(self, real: Path, is_link: bool) -> bool:
        if not is_link:
            return real in self._begun
        return self._real.is_relative_to(real) or self._has_own_place(real)

    def _has_own_place(self, real: Path) -> bool:
        """Whether a folder is reached, now or later, from one where reading began, without passing a hidden one."""
        for above in (real, *real.parents):
            if above in self._begun:
                return True
            if above.name.startswith("."):
                return False
        return False


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # entry.is_dir() raises for a link to itself, which is one bad image and no reason to end the listing.
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()  # noqa: PTH112


def _listed(source: Path) -> Iterator[str]:
    with source.open(encoding="utf-8-sig") as lines:
        for line in lines:
            if name := line.rstrip("\r\n"):
                yield name
