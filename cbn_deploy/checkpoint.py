"""``model.pt``: plain tensors and primitives, loaded without unpickling code."""

from __future__ import annotations

import io
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cbn_deploy.atomic import atomic_write_bytes
from cbn_deploy.digest import file_sha256
from cbn_deploy.errors import CheckpointError, ModelFileError
from cbn_deploy.models import ArchitectureConfig, create_model
from cbn_deploy.runtime.description import ModelDescription

__all__ = [
    "Checkpoint",
    "file_sha256",
    "load_checkpoint",
    "load_model",
    "load_tensors",
    "save_checkpoint",
    "save_tensors",
]

_FORMAT = "cbn-checkpoint"
_VERSION = 1
_FILE = "model.pt"
_TORCHSCRIPT_MEMBER = "constants.pkl"
# A ModelProto: ir_version, then the next field that has a value (producer, opsets, graph, ...).
_ONNX_START = re.compile(rb"\x08[\x01-\x7f][\x12\x1a\x22\x28\x32\x3a\x42]")
_START_BYTES = 3


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A trained model and what it says about itself.

    Attributes:
        architecture: how to build the network.
        description: class names, preprocessing and the rest.
        state_dict: the network's tensors.
        sample_images: uint8 (n, H, W, 3), real test images at model size, for the exporter's parity gate; or ``None``.
    """

    architecture: ArchitectureConfig
    description: ModelDescription
    state_dict: Mapping[str, Tensor]
    sample_images: Tensor | None = None


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write ``checkpoint`` atomically.

    Raises:
        OutputError: the folder cannot be written or the disk is full.
    """
    plain = {
        "format": _FORMAT,
        "version": _VERSION,
        "architecture": checkpoint.architecture.to_dict(),
        "description": checkpoint.description.to_dict(),
        "state_dict": {name: tensor.detach().cpu() for name, tensor in checkpoint.state_dict.items()},
        "sample_images": checkpoint.sample_images,
    }
    save_tensors(path, plain)


def save_tensors(path: Path, plain: Mapping[str, Any]) -> None:
    """Write tensors and primitives atomically, for :func:`load_tensors`.

    Raises:
        OutputError: the folder cannot be written or the disk is full.
    """
    # In memory first: torch.save reports a full disk as RuntimeError, writing bytes reports it as OSError.
    buffer = io.BytesIO()
    torch.save(dict(plain), buffer)
    atomic_write_bytes(path, buffer.getvalue())


def load_tensors(path: Path) -> dict[str, Any]:
    """Load a file of plain tensors and primitives; anything that would run code is refused.

    Raises:
        CheckpointError: missing, a folder, a model of another kind, truncated, not a torch file, or a pickle with code
            in it.
    """
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(_folder_sentence(path))
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; give the path of a model.pt made by cbn-train.")
    kind = _other_kind(path)
    if kind:
        raise CheckpointError(f"{path} is {kind} file, not a checkpoint; give the model.pt that cbn-train made.")
    damaged = f"{path} is truncated or not a torch file; copy it again or retrain."
    if not zipfile.is_zipfile(path):  # what torch.save writes; its index is at the end, so a cut file has none
        raise CheckpointError(damaged)
    try:
        plain = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} contains more than plain tensors and was not loaded; only open checkpoints made by cbn-train."
        ) from error
    except Exception as error:  # a damaged archive can raise nearly anything
        raise CheckpointError(damaged) from error
    if not isinstance(plain, dict):
        raise CheckpointError(
            f"{path} holds a {type(plain).__name__}, not a checkpoint; give a model.pt made by cbn-train."
        )
    return plain


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint made by :func:`save_checkpoint`.

    Raises:
        CheckpointError: see :func:`load_tensors`; also a foreign or newer format, or outputs and class names that
            differ in number.
    """
    plain = load_tensors(path)
    if plain.get("format") != _FORMAT:
        raise CheckpointError(f"{path} is a torch file but not a cbn checkpoint; give a model.pt made by cbn-train.")
    if plain.get("version") != _VERSION:
        raise CheckpointError(
            f"{path} has checkpoint version {plain.get('version')}, this cbn-deploy reads {_VERSION}."
        )
    try:
        checkpoint = Checkpoint(
            architecture=ArchitectureConfig.from_dict(plain["architecture"]),
            description=ModelDescription.from_dict(plain["description"]),
            state_dict=dict(plain["state_dict"]),
            sample_images=plain["sample_images"],
        )
    except (KeyError, TypeError, ValueError, OverflowError, ModelFileError) as error:
        raise CheckpointError(f"{path} is incomplete or damaged ({error}); retrain or use another copy.") from error
    _check_classes(path, checkpoint)
    _check_samples(path, checkpoint)
    return checkpoint


def load_model(checkpoint: Checkpoint) -> nn.Module:
    """Build the network, load its tensors, set eval mode.

    Raises:
        CheckpointError: the tensors do not fit the architecture, or are not finite.
    """
    misfit = f"The checkpoint's tensors do not fit {checkpoint.architecture.name}; it is damaged or was edited."
    if not _has_components(checkpoint):
        raise CheckpointError(misfit)
    try:
        with torch.random.fork_rng(devices=[]):
            model = create_model(checkpoint.architecture, checkpoint.description.class_counts)
        model.load_state_dict(checkpoint.state_dict)
    except (RuntimeError, AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(misfit) from error
    for name, tensor in model.state_dict().items():
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"The checkpoint's tensor {name} is not finite; the training run diverged.")
    return model.eval()


def _folder_sentence(folder: Path) -> str:
    checkpoint = folder / _FILE
    if checkpoint.is_file():
        return f"{folder} is a folder; give {checkpoint}."
    return f"{folder} is a folder without a {_FILE}; give the path of a {_FILE} made by cbn-train."


def _other_kind(path: Path) -> str:
    """What else a file is that people have beside checkpoints, with its article; empty: nothing that we know.

    TorchScript is told by the names in its archive alone: torch itself warns of it, and reads code for it.
    """
    try:
        with path.open("rb") as file:
            if path.suffix.lower() == ".onnx" or _ONNX_START.match(file.read(_START_BYTES)):
                return "an ONNX"
            with zipfile.ZipFile(file) as archive:
                names = archive.namelist()
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):  # damaged, or not ours to read: said later
        return ""
    return "a TorchScript" if any(name.partition("/")[2] == _TORCHSCRIPT_MEMBER for name in names) else ""


def _check_classes(path: Path, checkpoint: Checkpoint) -> None:
    outputs, names = checkpoint.architecture.num_classes, len(checkpoint.description.class_names)
    if outputs != names:
        raise CheckpointError(f"{path} has {outputs} outputs but {names} class names; it is damaged or was edited.")


def _has_components(checkpoint: Checkpoint) -> bool:
    """Whether the first layer has as many Gaussians as the architecture says.

    Asked before the network is built: a number that is none could take all memory.
    """
    norm = checkpoint.architecture.norm
    if norm is None:
        return True
    expected = {"bn1.running_tau": norm.components}
    if norm.split_groups is not None:
        expected["bn1.split.running_tau"] = norm.split_groups
    tensors = checkpoint.state_dict
    return all(
        name in tensors and isinstance(tensors[name], Tensor) and tensors[name].shape == (number,)
        for name, number in expected.items()
    )


def _check_samples(path: Path, checkpoint: Checkpoint) -> None:
    samples, preprocessing = checkpoint.sample_images, checkpoint.description.preprocessing
    if samples is None:
        return
    expected = (preprocessing.height, preprocessing.width, 3)
    if not isinstance(samples, Tensor) or samples.dtype != torch.uint8 or tuple(samples.shape[1:]) != expected:
        raise CheckpointError(f"{path} has sample images of the wrong shape or type; it is damaged or was edited.")
