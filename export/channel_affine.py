"""Nodes that multiply and shift every channel by constants: what the op's tables can take over."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

__all__ = ["ChannelAffine", "channel_affine", "conv_bias"]

Array = NDArray[np.float64]
_DEFAULT_EPSILON = 1e-5  # of ONNX's BatchNormalization


@dataclass(frozen=True)
class ChannelAffine:
    """``result = gain * source + offset`` for every channel.

    Attributes:
        source: (B, D, *spatial), of the same shape as the result.
        gain: (D,) float64, finite.
        offset: (D,) float64, finite.
    """

    source: ir.Value
    gain: Array
    offset: Array


def channel_affine(node: ir.Node) -> ChannelAffine | None:
    """What ``node`` does, if it is Add, Sub, Mul or Div with a constant, or BatchNormalization.

    ``None`` for every other node, for a constant that differs within a channel or is not finite, for a broadcast that
    changes the shape, for unknown shapes and for other types than float32.
    """
    if node.domain != "" or len(node.outputs) != 1:
        return None
    found = _batch_norm(node) if node.op_type == "BatchNormalization" else _arithmetic(node)
    if found is None or found.source.dtype != ir.DataType.FLOAT or found.source.shape != node.outputs[0].shape:
        return None
    return found if np.isfinite(found.gain).all() and np.isfinite(found.offset).all() else None


def conv_bias(node: ir.Node) -> Array | None:
    """(D,) the constant bias of a float32 Conv; ``None`` for every other node."""
    if (node.domain, node.op_type) != ("", "Conv") or len(node.inputs) < 3:
        return None
    return _constant(node.inputs[2])


def _arithmetic(node: ir.Node) -> ChannelAffine | None:
    if node.op_type not in ("Add", "Sub", "Mul", "Div"):
        return None
    left, right = node.inputs
    for source, other in ((left, right), (right, left)):
        constant = None if source is None else _per_channel(other, source)
        if source is None or constant is None:
            continue
        one, zero = np.ones_like(constant), np.zeros_like(constant)
        with np.errstate(divide="ignore"):
            forms = {
                "Add": (one, constant),
                "Sub": (one, -constant) if source is left else (-one, constant),
                "Mul": (constant, zero),
                "Div": (1.0 / constant, zero) if source is left else None,
            }
        form = forms[node.op_type]
        return None if form is None else ChannelAffine(source, *form)
    return None


def _batch_norm(node: ir.Node) -> ChannelAffine | None:
    training = node.attributes.get("training_mode")
    source, constants = node.inputs[0], [_constant(value) for value in node.inputs[1:5]]
    if source is None or (training is not None and training.as_int()):
        return None
    scale, bias, mean, var = constants
    if scale is None or bias is None or mean is None or var is None:
        return None
    epsilon = node.attributes.get("epsilon")
    gain = scale / np.sqrt(var + (_DEFAULT_EPSILON if epsilon is None else epsilon.as_float()))
    return ChannelAffine(source, gain, bias - gain * mean)


def _per_channel(value: ir.Value | None, source: ir.Value) -> Array | None:
    """(D,) the constant that ``value`` is in each channel of ``source``."""
    constant, shape = _constant(value), source.shape
    if constant is None or shape is None or len(shape) < 2 or constant.ndim > len(shape):
        return None
    channels = shape[1]
    if not isinstance(channels, int):
        return None
    axes = [1] * (len(shape) - constant.ndim) + list(constant.shape)
    if axes[1] not in (1, channels) or constant.size != axes[1]:
        return None
    result: Array = np.full(channels, constant.ravel())
    return result


def _constant(value: ir.Value | None) -> Array | None:
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    if tensor is None or tensor.dtype != ir.DataType.FLOAT:
        return None
    return np.asarray(tensor.numpy(), dtype=np.float64)
