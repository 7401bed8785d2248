"""Start from the weights of a batch-norm network, such as torchvision's ResNet-152 trained on ImageNet."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from cbn_deploy.errors import CheckpointError
from cbn_deploy.models import ArchitectureConfig, bn_twin, create_model
from cbn_deploy.norm import class_groups, convert_batchnorm

__all__ = ["load_pretrained"]

_COUNTER = "num_batches_tracked"


def load_pretrained(
    model: nn.Module, architecture: ArchitectureConfig, path: Path, class_counts: Sequence[int] | None = None
) -> None:
    """Copy weights and running statistics from ``path`` into ``model``; its classifier stays as it was made.

    The file holds the tensors of the batch-norm network by name, as ``torch.save(model.state_dict(), path)`` writes
    them (torchvision's files), or these under the key "state_dict", with or without the prefix "module.". The file's
    classifier (the last linear layer) is ignored: it belongs to other classes. In a CBN network every mixture starts
    as M copies of the file's batch norm, as :func:`cbn_deploy.norm.convert_batchnorm` makes them, so that the features
    of the first forward in eval mode are those of the file.

    Args:
        model: made by ``create_model(architecture, class_counts)``.
        architecture: the model's.
        path: the file; ``~`` is the home folder.
        class_counts: K training counts, for ``class_grouping="frequency"``.

    Raises:
        CheckpointError: missing, unreadable, more than plain tensors, or the tensors of another network.
    """
    path = _at_home(path)
    twin = create_model(bn_twin(architecture))
    classifier = _classifier_name(twin)
    tensors = {name: value for name, value in _read(path).items() if not name.startswith(classifier)}
    _check_fit(path, tensors, twin, classifier, architecture.name)
    twin.load_state_dict(tensors, strict=False)
    for name, buffer in twin.named_buffers():
        if name.endswith(_COUNTER):  # statistics that were carried over are no first batch's; old files count nothing
            buffer.clamp_(min=1)
    source = twin
    if (norm := architecture.norm) is not None:
        groups = class_groups(architecture.num_classes, norm.groups, norm.class_grouping, class_counts)
        source = convert_batchnorm(twin, norm, groups)
    state = {name: value for name, value in source.state_dict().items() if not name.startswith(classifier)}
    model.load_state_dict(state, strict=False)


def _classifier_name(network: nn.Module) -> str:
    """Prefix of the last linear layer's tensors."""
    names: list[str] = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    return f"{names[-1]}."


def _at_home(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise CheckpointError(
            f"{path} names a user without a home folder here; give the whole path with --set init_from=FILE."
        ) from error


def _read(path: Path) -> dict[str, Tensor]:
    # Path.is_file() would raise for a name that is too long for the file system.
    if not os.path.isfile(path):  # noqa: PTH113
        raise CheckpointError(
            f"{path} does not exist; give a file of weights with --set init_from=FILE, or none to start afresh."
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged archive can raise nearly anything
        raise CheckpointError(
            f"{path} is no torch file of plain tensors (damaged, or with code in it) and was not loaded; "
            "download it again, or save the network's state_dict alone."
        ) from error
    tensors = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise CheckpointError(f"{path} holds no tensors by name; give a file with a network's state_dict.")
    return {str(name).removeprefix("module."): value for name, value in tensors.items()}


def _check_fit(path: Path, tensors: dict[str, Tensor], network: nn.Module, classifier: str, model: str) -> None:
    expected = {name: value.shape for name, value in network.state_dict().items() if not name.startswith(classifier)}
    wrong = [name for name in expected if name not in tensors and not name.endswith(_COUNTER)]
    wrong += [name for name, value in tensors.items() if expected.get(name) != value.shape]
    if wrong:
        raise CheckpointError(
            f"{path} does not hold the tensors of {model} with batch norm ({len(wrong)} do not fit, the first is "
            f"{wrong[0]}); give the file of that network."
        )
    broken = [name for name, value in tensors.items() if not bool(torch.isfinite(value).all())]
    if broken:
        raise CheckpointError(f"{path} has values that are not finite in {broken[0]}; give another file.")
