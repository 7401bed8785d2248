"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cbn_deploy.errors import OutputError

__all__ = ["atomic_folder", "atomic_path", "atomic_write_bytes", "check_writable"]

# What stands in the folder may have to go on there, so another one is the last remedy.
_REMEDY = "free space, make the folder writable or choose another folder"

# Reading it means setting it, for all threads: once, before there are any.
_UMASK = os.umask(0o077)
os.umask(_UMASK)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; when the block ends well it is fsynced and renamed to ``path``.

    If the block raises, the temporary file is removed and whatever was at ``path`` is untouched. A file that is
    replaced hands its permissions on.

    Raises:
        OutputError: the folder cannot be created or written, or the disk is full.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(descriptor)
    except OSError as error:
        raise OutputError(f"Cannot write {path}: {error.strerror or error}; {_REMEDY}.") from error
    temporary = Path(name)
    try:
        yield temporary
        _to_disk(temporary)
        _usual_permissions(temporary, 0o666)
        with suppress(FileNotFoundError):  # whoever has closed the file that is replaced wants it closed
            temporary.chmod(stat.S_IMODE(path.stat().st_mode))
        temporary.replace(path)
    except OSError as error:
        raise OutputError(
            f"Cannot write {path}: {error.strerror or error}; free space or choose another folder."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """A hidden folder beside ``folder``, renamed to it when the block ends well and removed when it does not.

    Raises:
        OutputError: it cannot be written, or ``folder`` is there and not empty.
    """
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
    try:
        yield temporary
        for path in sorted(temporary.rglob("*"), reverse=True):
            if path.is_file():
                _to_disk(path)
        _usual_permissions(temporary, 0o777)
        temporary.rename(folder)
    except OSError as error:
        raise OutputError(
            f"Cannot write {folder}: {error.strerror or error}; free space or choose another folder."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _to_disk(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _usual_permissions(path: Path, mode: int) -> None:
    """What an ordinary open() or mkdir() would have given; tempfile's are for the owner alone."""
    path.chmod(mode & ~_UMASK)


def atomic_write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` atomically (see :func:`atomic_path`)."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def check_writable(folder: Path, needed_bytes: int = 0) -> None:
    """Raise :class:`OutputError` now if ``folder`` cannot take ``needed_bytes`` later."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".writable.") as probe:
            probe.write(b"\0")
            probe.flush()
        status = os.statvfs(folder)
    except OSError as error:
        raise OutputError(f"Cannot write to {folder}: {error.strerror or error}; {_REMEDY}.") from error
    free = status.f_bavail * status.f_frsize
    if free < needed_bytes:
        raise OutputError(
            f"{folder} has {free / 1e6:.0f} MB free but about {needed_bytes / 1e6:.0f} MB are needed; "
            "free space or choose another folder."
        )
