"""What tells a file from what it was before."""

from __future__ import annotations

from pathlib import Path

__all__ = ["Fingerprint", "fingerprint"]

# Modification time in ns, size, inode: what changes when a file is changed. Of two files, one after the other.
Fingerprint = tuple[int, ...]


def fingerprint(path: Path) -> Fingerprint | None:
    """Of the file at ``path``, links followed; ``None``: there is none that can be looked at."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
