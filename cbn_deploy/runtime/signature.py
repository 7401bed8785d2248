"""Names and shapes of an exported model's inputs and outputs: the contract between cbn-export and every runtime."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cbn_deploy.errors import ModelFileError
from cbn_deploy.runtime.description import ModelDescription
from cbn_deploy.runtime.session import Prediction

__all__ = [
    "INPUT",
    "LOGITS",
    "MODEL_NAME",
    "POSTERIOR_PREFIX",
    "TensorSignature",
    "check_signature",
    "to_prediction",
]

INPUT = "images"
LOGITS = "logits"
POSTERIOR_PREFIX = "posterior."
# What servers call a model: part of a URL, and a folder in a repository of models.
MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class TensorSignature:
    """What a runtime reports of one input or output: whether it is float32, and its shape (``None``: dynamic)."""

    is_float32: bool
    shape: tuple[int | None, ...]


def check_signature(
    path: Path,
    description: ModelDescription,
    inputs: Mapping[str, TensorSignature],
    outputs: Mapping[str, TensorSignature],
) -> None:
    """Demand the one input "images" (batch, 3, H, W) and an output "logits" (batch, K), float32, batch dynamic.

    Outputs "posterior.<layer>" are not demanded, but must be float32 (batch, M, height, width) if they are there.

    Raises:
        ModelFileError: otherwise.
    """
    if set(inputs) != {INPUT} or LOGITS not in outputs:
        raise ModelFileError(
            f"{path} must have the one input '{INPUT}' and an output '{LOGITS}', "
            f"but has inputs {sorted(inputs)} and outputs {sorted(outputs)}; make it with cbn-export."
        )
    size = description.preprocessing
    _check_tensor(path, INPUT, inputs[INPUT], (3, size.height, size.width))
    _check_tensor(path, LOGITS, outputs[LOGITS], (len(description.class_names),))
    for name, tensor in outputs.items():
        if name.startswith(POSTERIOR_PREFIX):
            _check_tensor(path, name, tensor, ("M", "height", "width"))


def to_prediction(values: Mapping[str, NDArray[np.float32]]) -> Prediction:
    """Sort a run's outputs, by name, into logits and posteriors."""
    return Prediction(
        logits=values[LOGITS],
        posteriors={
            name.removeprefix(POSTERIOR_PREFIX): value
            for name, value in values.items()
            if name.startswith(POSTERIOR_PREFIX)
        },
    )


def _check_tensor(path: Path, name: str, tensor: TensorSignature, expected: tuple[int | str, ...]) -> None:
    """``expected``: the sizes after the batch; text names one that may be anything from 1 on."""
    fits = (
        len(tensor.shape) == 1 + len(expected)
        and tensor.shape[0] is None
        and all(_fits(actual, wanted) for actual, wanted in zip(tensor.shape[1:], expected, strict=True))
    )
    if not (fits and tensor.is_float32):
        wanted = ", ".join(map(str, expected))
        raise ModelFileError(
            f"{path}: '{name}' must be float32 of shape (batch, {wanted}) with a dynamic batch, as its metadata says, "
            f"but is {'float32' if tensor.is_float32 else 'not float32'} of shape {tensor.shape}; export it again."
        )


def _fits(actual: int | None, wanted: int | str) -> bool:
    if actual is None:
        return True
    return actual >= 1 if isinstance(wanted, str) else actual == wanted
