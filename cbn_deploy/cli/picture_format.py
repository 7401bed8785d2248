"""The format of a picture that a command line names by its file."""

from __future__ import annotations

from pathlib import Path

from cbn_deploy.errors import OutputError

__all__ = ["picture_format"]


def picture_format(path: Path) -> str:
    """ "png", "svg" or "pdf", by the file's suffix.

    Raises:
        OutputError: it has another.
    """
    suffix = path.suffix.lower().removeprefix(".")
    if suffix not in ("png", "svg", "pdf"):
        raise OutputError(f"{path} is neither a .png nor a .svg nor a .pdf file; name the picture by its format.")
    return suffix
