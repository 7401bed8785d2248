"""Write a fitted temperature into a model file: its description changes, the model itself does not, not by a byte."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

from cbn_deploy.atomic import atomic_write_bytes
from cbn_deploy.errors import ModelFileError, OutputError
from cbn_deploy.runtime.engine_file import description_path, read_engine_file
from cbn_deploy.runtime.onnx_file import read_onnx_file, replace_metadata

__all__ = ["description_digest", "write_temperature"]


def description_digest(model: Path) -> str | None:
    """SHA-256 of the file that holds ``model``'s description: the model itself, or the JSON beside an engine.

    ``None`` if there is no such file.
    """
    file = _described_in(Path(model))
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None


def write_temperature(model: Path, temperature: float, *, digest: str | None) -> None:
    """Put ``temperature`` into the description of ``model``, atomically; a server that watches the file reloads it.

    - ``model.onnx``: one entry of ``metadata_props``; the graph, the parity report and all else keep their bytes.
    - ``model.pt``: the description in the checkpoint; files exported from it carry the temperature on.
    - ``model.engine``: the JSON beside it.

    Args:
        model: the file.
        temperature: T, finite and above 0.
        digest: :func:`description_digest` of the file that the temperature was fitted for.

    Raises:
        OutputError: the file was replaced meanwhile, or cannot be written.
        ModelFileError, CheckpointError: the file cannot be read, or is of another kind.
        ValueError: an impossible temperature.
    """
    model = Path(model)
    if digest is None or description_digest(model) != digest:
        raise OutputError(f"{model} was replaced while it was evaluated, so nothing was written; evaluate it again.")
    target = _described_in(model).resolve()  # what a link points to, not the link
    if model.suffix.lower() == ".pt":
        _write_checkpoint(target, temperature)
    elif model.suffix.lower() == ".engine":
        atomic_write_bytes(target, _engine_description(model, temperature))
    elif model.suffix.lower() == ".onnx":
        atomic_write_bytes(target, _onnx_content(target, temperature))
    else:
        raise ModelFileError(f"{model} is neither a .onnx nor a .pt nor a .engine file; rename it to what it is.")


def _described_in(model: Path) -> Path:
    return description_path(model) if model.suffix.lower() == ".engine" else model


def _onnx_content(path: Path, temperature: float) -> bytes:
    file = read_onnx_file(path)
    changed = dataclasses.replace(file.description, temperature=temperature).to_metadata()
    return replace_metadata(file.content, {"cbn.temperature": changed["cbn.temperature"]})


def _engine_description(path: Path, temperature: float) -> bytes:
    description = read_engine_file(path).description
    model = dataclasses.replace(description.model, temperature=temperature)
    plain = dataclasses.replace(description, model=model).to_dict()
    return (json.dumps(plain, indent=2, ensure_ascii=False) + "\n").encode()


def _write_checkpoint(path: Path, temperature: float) -> None:
    # torch takes seconds to import, and only a checkpoint needs it.
    from cbn_deploy.checkpoint import load_checkpoint, save_checkpoint

    checkpoint = load_checkpoint(path)
    description = dataclasses.replace(checkpoint.description, temperature=temperature)
    save_checkpoint(path, dataclasses.replace(checkpoint, description=description))
