"""What a model takes and gives, in the protocol's words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cbn_deploy.runtime.signature import INPUT, LOGITS, POSTERIOR_PREFIX
from serving.models import ServedModel

__all__ = ["ENCODED_INPUT", "INPUT", "LOGITS", "POSTERIOR_PREFIX", "TensorMetadata", "input_tensor", "output_tensors"]

# An extension of ours: the same images as files, for the server to decode and preprocess.
ENCODED_INPUT = "image_bytes"


@dataclass(frozen=True, kw_only=True)
class TensorMetadata:
    """An input or output; -1 stands for a size that may vary."""

    name: str
    datatype: Literal["FP32"]
    shape: list[int]


def input_tensor(model: ServedModel) -> TensorMetadata:
    """The model's input."""
    size = model.description.preprocessing
    return TensorMetadata(name=INPUT, datatype="FP32", shape=[-1, 3, size.height, size.width])


def output_tensors(model: ServedModel) -> list[TensorMetadata]:
    """The model's outputs: the logits, and the posteriors that the file returns."""
    posteriors = {f"{POSTERIOR_PREFIX}{layer}": [-1, m, -1, -1] for layer, m in model.components.items()}
    shapes = {LOGITS: [-1, len(model.description.class_names)], **posteriors}
    return [TensorMetadata(name=name, datatype="FP32", shape=shape) for name, shape in shapes.items()]
