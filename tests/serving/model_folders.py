"""A folder of models, and files that come into it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from serving.models import ModelRegistry
from tests.onnx_models import COLOURS, colour_model, describe

Start = Callable[..., ModelRegistry]


def put(path: Path, mark: str = "", **changes: Any) -> Path:
    """A colour model whose labels end with ``mark``, moved to ``path`` when it is whole."""
    names = tuple(colour + mark for colour in COLOURS)
    return put_bytes(path, colour_model(description=describe(class_names=names, **changes)).SerializeToString())


def put_bytes(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.new")
    beside.write_bytes(content)
    return beside.replace(path)


def refresh(registry: ModelRegistry) -> None:
    """Until what has changed has also settled."""
    registry.refresh()
    registry.refresh()
