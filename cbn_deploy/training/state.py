"""``last.pt``: everything that a run needs to go on after its last completed epoch as if it had never stopped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cbn_deploy.checkpoint import save_tensors
from cbn_deploy.errors import CheckpointError

__all__ = ["RunState", "capture_state", "load_state", "restore_state", "save_state"]

_FORMAT_VERSION = 1
_ADVICE = "start again in another folder"


@dataclass(frozen=True, kw_only=True)
class RunState:
    """The state after ``epoch`` completed epochs; tensors and primitives only.

    Attributes:
        epoch: completed epochs, 0 for a run that has just been set up.
        recipe: the recipe as a JSON dict.
        class_names: K names of the data trained on.
        class_counts: K training counts of that data.
        model: state dict of the network.
        optimizer: state dict of the optimizer.
        random_state: torch's CPU generator state, uint8.
        seconds: wall-clock seconds spent on the completed epochs.
    """

    epoch: int
    recipe: Mapping[str, Any]
    class_names: tuple[str, ...]
    class_counts: tuple[int, ...]
    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Any]
    random_state: Tensor
    seconds: float


def capture_state(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    epoch: int,
    recipe: Mapping[str, Any],
    class_names: tuple[str, ...],
    class_counts: tuple[int, ...],
    seconds: float,
) -> RunState:
    """The present state of a run; its tensors are the live ones, so save it before the next step."""
    return RunState(
        epoch=epoch,
        recipe=recipe,
        class_names=class_names,
        class_counts=class_counts,
        model=model.state_dict(),
        optimizer=optimizer.state_dict(),
        random_state=torch.get_rng_state(),
        seconds=seconds,
    )


def restore_state(state: RunState, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put ``model``, ``optimizer`` and torch's CPU generator where :func:`capture_state` found them.

    Raises:
        CheckpointError: the state is that of another network or optimizer, or of another version of torch.
    """
    try:
        model.load_state_dict(dict(state.model))
        optimizer.load_state_dict(dict(state.optimizer))
        torch.set_rng_state(state.random_state)
    except torch.OutOfMemoryError:  # a RuntimeError, but not the file's fault
        raise
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:  # each has its own kinds
        raise CheckpointError(
            f"The state to resume from does not fit the recipe's network and optimizer; {_ADVICE}."
        ) from error


def save_state(path: Path, state: RunState) -> None:
    """Write ``state`` to ``path`` atomically.

    Raises:
        OutputError: the folder cannot be written or the disk is full.
    """
    content: dict[str, Any] = {field.name: getattr(state, field.name) for field in fields(state)}
    save_tensors(path, {"format_version": _FORMAT_VERSION, **content})


def load_state(path: Path) -> RunState:
    """Read a state (``weights_only``: a pickle that holds anything but tensors and primitives is refused).

    Raises:
        CheckpointError: the file is truncated, untrusted, damaged or not a training state.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zipfile, pickle and torch each raise their own kinds for damaged files
        raise CheckpointError(f"{path} cannot be read as a training state; {_ADVICE}.") from error
    names = {field.name for field in fields(RunState)}
    if not isinstance(content, dict) or content.get("format_version") != _FORMAT_VERSION or not names <= content.keys():
        raise CheckpointError(f"{path} is not a training state of this version of cbn-deploy; {_ADVICE}.")
    state = RunState(**{name: content[name] for name in names})
    wrong = [name for name, sound in _soundness(state).items() if not sound]
    if wrong:
        raise CheckpointError(f"{path} is damaged (its {wrong[0]} cannot be that of a run); {_ADVICE}.")
    return state


def _soundness(state: RunState) -> dict[str, bool]:
    """Field -> whether it has the type and range of what :func:`capture_state` puts there."""
    return {
        "epoch": isinstance(state.epoch, int) and state.epoch >= 0,
        "recipe": isinstance(state.recipe, dict),
        "class_names": _is_tuple_of(str, state.class_names),
        "class_counts": _is_tuple_of(int, state.class_counts),
        "model": isinstance(state.model, dict),
        "optimizer": isinstance(state.optimizer, dict),
        "random_state": isinstance(state.random_state, Tensor),
        "seconds": isinstance(state.seconds, (int, float)),
    }


def _is_tuple_of(kind: type, values: object) -> bool:
    return isinstance(values, tuple) and all(isinstance(value, kind) for value in values)
