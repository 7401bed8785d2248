"""Where the model files are: the ones named on the command line, and those in a folder of models.

A folder of models is laid out as NVIDIA Triton wants it, ``DIR/NAME/VERSION/model.onnx`` with whole numbers for
versions, and ``DIR/NAME.onnx`` is short for version 1 of NAME.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cbn_deploy.runtime.engine_file import description_path
from cbn_deploy.runtime.signature import MODEL_NAME
from serving.settings import ModelSource
from serving.watched_file import Fingerprint, fingerprint

__all__ = ["FIRST_VERSION", "MODEL_FILE", "ModelFile", "find_files", "find_in_repository"]

FIRST_VERSION = 1
MODEL_FILE = "model.onnx"
_VERSION = re.compile(r"[1-9][0-9]{0,8}")


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """A file that is there: which version of which model it is, and what tells it from another at the same path."""

    name: str
    version: int
    path: Path
    fingerprint: Fingerprint

    def without_folders(self, sentence: str) -> str:
        """``sentence`` with this file, and others beside it, by their names alone: clients need not know the paths."""
        folders = {self.path.parent, self.path.absolute().parent, self.path.resolve().parent}
        for folder in sorted(map(str, folders), key=len, reverse=True):
            if folder not in (os.curdir, os.sep):
                sentence = sentence.replace(folder + os.sep, "")
        return sentence


def find_files(sources: tuple[ModelSource, ...], repository: Path | None) -> dict[tuple[str, int], ModelFile]:
    """Every model file that is there now, by name and version.

    A model of ``sources`` hides one of the same name in ``repository``, and a folder ``NAME`` a file ``NAME.onnx``.
    What bears no model's name, or is hidden (``.name``), is left out.

    Raises:
        OSError: the folder of models cannot be read.
    """
    named = {source.name for source in sources}
    paths = [(source.name, FIRST_VERSION, source.path) for source in sources]
    if repository is not None:
        paths += [found for found in find_in_repository(repository) if found[0] not in named]
    files: dict[tuple[str, int], ModelFile] = {}
    for name, version, path in paths:
        found = _fingerprint(path)
        if found is not None:
            file = ModelFile(name=name, version=version, path=path, fingerprint=found)
            files.setdefault((name, version), file)
    return files


def _fingerprint(path: Path) -> Fingerprint | None:
    """Of the file and, if that is an engine, of the description beside it, which has the temperature."""
    found = fingerprint(path)
    if found is None or path.suffix.lower() != ".engine":
        return found
    return *found, *(fingerprint(description_path(path)) or ())


def find_in_repository(repository: Path) -> Iterator[tuple[str, int, Path]]:
    """Name, version and path wherever the layout has a model file; whether there is one is not looked at.

    Raises:
        OSError: the folder cannot be read.
    """
    entries = sorted(repository.iterdir())
    for folder in entries:
        if MODEL_NAME.fullmatch(folder.name) and folder.is_dir():
            yield from ((folder.name, int(path.name), path / MODEL_FILE) for path in _versions(folder))
    for path in entries:
        if path.suffix == ".onnx" and MODEL_NAME.fullmatch(path.stem) and not path.is_dir():
            yield path.stem, FIRST_VERSION, path


def _versions(folder: Path) -> list[Path]:
    try:
        return [path for path in sorted(folder.iterdir()) if _VERSION.fullmatch(path.name)]
    except OSError:  # removed meanwhile, or not ours to read: it has no versions
        return []
