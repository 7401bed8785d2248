"""Model files in the folder of models that are not served because of where they lie, and where they would be."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path

from cbn_deploy.runtime.signature import MODEL_NAME
from serving.models.files import FIRST_VERSION, MODEL_FILE, find_in_repository
from serving.settings import ModelSource
from serving.watched_file import fingerprint

__all__ = ["MisplacedFiles"]

# As deep as the layout goes: DIR/NAME/VERSION/model.onnx.
_LEVELS = 3
# A folder that is none of models may hold millions of files, and it is looked at again and again.
_MAX_ENTRIES = 2000
_MAX_WARNINGS = 10

log = logging.getLogger("serving.models")


class MisplacedFiles:
    """Warns of the ``.onnx`` files in ``repository`` that neither its layout nor ``sources`` name; once of each that
    comes."""

    def __init__(self, sources: tuple[ModelSource, ...], repository: Path | None) -> None:
        self._named = {source.path.absolute() for source in sources}
        self._repository = repository
        self._known: frozenset[Path] = frozenset()

    def warn(self) -> None:
        """Look at the folder now and warn of what is new there.

        Raises:
            OSError: the folder of models cannot be read.
        """
        if self._repository is None:
            return
        found = [path for path in _misplaced(self._repository) if path.absolute() not in self._named]
        new = [path for path in found if path not in self._known]
        self._known = frozenset(found)
        for path in new[:_MAX_WARNINGS]:
            fields = {"file": str(path), "move_to": str(_right_place(self._repository, path))}
            log.warning("model file not served, it is in the wrong place", extra={"fields": fields})
        if len(new) > _MAX_WARNINGS:
            layout = str(self._repository / "NAME" / "VERSION" / MODEL_FILE)
            rest = {"files": len(new) - _MAX_WARNINGS, "move_to": layout}
            log.warning("more model files not served, they are in the wrong place", extra={"fields": rest})


def _misplaced(repository: Path) -> list[Path]:
    """At most three levels deep, without what is hidden or in linked folders, and of many entries only the first."""
    taken = {path for _, _, path in find_in_repository(repository)}
    files = (path for path, is_folder in islice(_entries(repository), _MAX_ENTRIES) if not is_folder)
    return sorted(path for path in files if path.suffix.lower() == ".onnx" and path not in taken)


def _entries(repository: Path) -> Iterator[tuple[Path, bool]]:
    """What is in the folder, level by level, and whether it is a folder too."""
    folders = [repository]
    for _ in range(_LEVELS):
        below: list[Path] = []
        for entry in (entry for folder in folders for entry in _visible(folder)):
            path, is_folder = Path(entry.path), entry.is_dir(follow_symlinks=False)
            yield path, is_folder
            if is_folder:
                below.append(path)
        folders = below


def _visible(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from (entry for entry in entries if not entry.name.startswith("."))
    except OSError:  # removed meanwhile, or not ours to read
        return


def _right_place(repository: Path, path: Path) -> Path:
    """A path that the layout has for the file: with what it says itself of name and version, where that is free."""
    first, *folders = path.relative_to(repository).with_suffix("").parts
    legal = re.sub(r"[^A-Za-z0-9._-]+", "-", first).strip("._-")[:64]
    name = legal if MODEL_NAME.fullmatch(legal) else "NAME"
    digits = re.search(r"[1-9][0-9]{0,8}", folders[0]) if len(folders) > 1 else None
    versions = count(FIRST_VERSION if digits is None else int(digits.group()))
    places = (repository / name / str(version) / MODEL_FILE for version in versions)
    return next(place for place in places if fingerprint(place) is None)
