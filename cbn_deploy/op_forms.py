"""The op in a model file, as whatever reads one must know it: its domain, the names of its forms, what each does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

__all__ = ["OP_DOMAIN", "OP_FORMS", "Form"]

OP_DOMAIN = "cbn"


class Form(NamedTuple):
    """What a form of the op does besides normalising.

    Attributes:
        residual: a second data input, shaped and typed like X, is added before the activation.
        relu: the result goes through ``max(0, .)``.
    """

    residual: bool
    relu: bool


OP_FORMS: Mapping[str, Form] = {
    "CompoundBatchNormalization": Form(residual=False, relu=False),
    "CompoundBatchNormalizationRelu": Form(residual=False, relu=True),
    "CompoundBatchNormalizationAddRelu": Form(residual=True, relu=True),
}
"""ONNX operator name -> form; names are unique across domains, as some readers key local functions by name alone."""
