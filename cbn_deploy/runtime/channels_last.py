"""Keep 8-bit tensors as they are between quantised convolutions: channels last, no conversion to float32 around the op.

onnxruntime's quantised convolutions read and write channels-last tensors, and it puts a Transpose wherever an op does
not; an int8 file's nodes of the op read float32 numbers, so that a DequantizeLinear and a QuantizeLinear stand around
each. Here nodes between those become their channels-last forms, domain ``cbn.nhwc``: 8-bit tensors in and out, the same
arithmetic inside. Like the blocked layout, the result lives in memory only.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from cbn_deploy.runtime.native_forms import Rewriting, has_residual, is_op, kept_attributes

__all__ = ["CHANNELS_LAST_OP_DOMAIN", "keep_channels_last"]

CHANNELS_LAST_OP_DOMAIN = "cbn.nhwc"
# Every instruction set can read a multiple of so many channels.
_CHANNELS = 16
_TO_PLANAR, _TO_CHANNELS_LAST = [0, 3, 1, 2], [0, 2, 3, 1]


class _Quantum(NamedTuple):
    """An 8-bit number n stands for ``scale * (n - zero)``."""

    scale: float
    zero: int


def keep_channels_last(model: onnx.ModelProto) -> int:
    """Replace the op's nodes between 8-bit channels-last tensors by their channels-last forms, in place.

    A node is replaced if its input is dequantised from the transposition of a channels-last uint8 tensor, its residual
    is dequantised from a uint8 tensor, it has no posterior, and all that reads it quantises it to uint8 alike.

    Args:
        model: as onnxruntime optimised it.

    Returns:
        How many nodes were replaced.
    """
    return _Rewriting(model).apply()


class _Rewriting(Rewriting):
    """A planar 8-bit value has a channels-last twin once a node made one."""

    def __init__(self, model: onnx.ModelProto) -> None:
        super().__init__(model, CHANNELS_LAST_OP_DOMAIN)
        self._constants = {table.name: table for table in model.graph.initializer}
        self._readers: dict[str, list[NodeProto]] = {}
        for node in self._nodes:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)
        self._twins: dict[str, str] = {}  # planar 8-bit value -> its channels-last twin
        self._dequantized: dict[str, tuple[str, _Quantum]] = {}  # float value -> what it was made of
        self._quantized: dict[str, str] = {}  # float value that no longer exists -> channels-last 8-bit value

    def _visit(self, node: NodeProto) -> Iterable[NodeProto]:
        if _is(node, "Transpose"):
            return self._visit_transpose(node)
        if _is(node, "DequantizeLinear"):
            quantum = self._quantum(node)
            if quantum is not None:
                self._dequantized[node.output[0]] = node.input[0], quantum
        elif _is(node, "QuantizeLinear") and node.input[0] in self._quantized:
            self._twins[node.output[0]] = self._quantized[node.input[0]]
            return [_transpose(self._quantized[node.input[0]], node.output[0], _TO_PLANAR)]
        elif is_op(node) and self._can_read(node):
            written = self._written(node)
            if written is not None:
                self.replaced += 1
                return self._replace(node, written)
        return [node]

    def _visit_transpose(self, node: NodeProto) -> Iterable[NodeProto]:
        permutation = next((list(a.ints) for a in node.attribute if a.name == "perm"), [])
        source, result = node.input[0], node.output[0]
        if permutation == _TO_PLANAR:
            self._twins[result] = source
        elif permutation == _TO_CHANNELS_LAST:
            twin = self._twins.setdefault(source, result)
            if twin != result and result not in self._outputs:
                self._renamed[result] = twin
                return []
        return [node]

    def _quantum(self, node: NodeProto) -> _Quantum | None:
        """Of a QuantizeLinear or DequantizeLinear; ``None`` unless constant, uint8 and one for the whole tensor."""
        tables = [self._constants.get(name) for name in node.input[1:]]
        if len(tables) != 2 or tables[0] is None or tables[1] is None:
            return None
        if tables[0].data_type != TensorProto.FLOAT or tables[1].data_type != TensorProto.UINT8:
            return None
        scale, zero = (numpy_helper.to_array(table) for table in tables if table is not None)
        return _Quantum(float(scale.item()), int(zero.item())) if scale.size == zero.size == 1 else None

    def _written(self, node: NodeProto) -> _Quantum | None:
        """How all that reads the node quantises it; ``None`` if something does not, or differently."""
        value = node.output[0]
        readers = self._readers.get(value, [])
        quanta = {self._quantum(reader) if _is(reader, "QuantizeLinear") else None for reader in readers}
        return quanta.pop() if len(quanta) == 1 and value not in self._outputs else None

    def _can_read(self, node: NodeProto) -> bool:
        mean = self._constants.get(node.input[-1])
        if mean is None or len(mean.dims) != 2 or mean.dims[1] % _CHANNELS or any(node.output[1:]):
            return False
        x = self._dequantized.get(node.input[0])
        if x is None or x[0] not in self._twins:
            return False
        # A residual without a twin gets one; the shapes are the same, so it has four axes as well.
        return not has_residual(node) or node.input[1] in self._dequantized

    def _replace(self, node: NodeProto, written: _Quantum) -> Iterable[NodeProto]:
        inputs, attributes = list(node.input), kept_attributes(node)
        names = ["x", "residual"] if has_residual(node) else ["x"]
        for i, name in enumerate(names):
            planar, quantum = self._dequantized[inputs[i]]
            if planar not in self._twins:
                self._twins[planar] = f"{planar}_channels_last"
                yield _transpose(planar, self._twins[planar], _TO_CHANNELS_LAST)
            inputs[i] = self._twins[planar]
            attributes += _attributes(name, quantum)
        result = f"{node.output[0]}_channels_last"
        self._quantized[node.output[0]] = result
        replacement = helper.make_node(node.op_type, inputs, [result], name=node.name, domain=CHANNELS_LAST_OP_DOMAIN)
        replacement.attribute.extend([*attributes, *_attributes("y", written)])
        yield replacement


def _attributes(name: str, quantum: _Quantum) -> list[onnx.AttributeProto]:
    return [helper.make_attribute(f"{name}_scale", quantum.scale), helper.make_attribute(f"{name}_zero", quantum.zero)]


def _is(node: NodeProto, op_type: str) -> bool:
    return node.op_type == op_type and not node.domain


def _transpose(source: str, result: str, permutation: list[int]) -> NodeProto:
    return helper.make_node("Transpose", [source], [result], perm=permutation)
