"""What tells a file from what it was before."""

from __future__ import annotations

from pathlib import Path

__all__ = ["Fingerprint", "fingerprint"]

Fingerprint = tuple[int, int, int]  # modification time in ns, size, inode: what changes when a file is changed


def fingerprint(path: Path) -> Fingerprint | None:
    """Of the file at ``path``, links followed; ``None``: there is none that can be looked at."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
