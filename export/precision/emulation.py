"""What a CPU runs in place of a bfloat16 file: the same graph in float32, every bfloat16 tensor rounded.

onnxruntime has no bfloat16 convolutions for CPUs. A GPU multiplies bfloat16 numbers exactly, adds in float32 and rounds
the result once; float32 arithmetic on rounded tensors, rounded again, differs from that by the order of sums alone.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import NodeProto, TensorProto

__all__ = ["ARITHMETIC", "emulate"]

ARITHMETIC = "float32, every bfloat16 tensor rounded to nearest, ties to even"

_FLOAT, _BFLOAT16 = TensorProto.FLOAT, TensorProto.BFLOAT16


def emulate(file: onnx.ModelProto) -> onnx.ModelProto:
    """``file`` in float32, with ``Cast(to=bfloat16) -> Cast(to=float32)`` behind every node that writes bfloat16.

    Values keep their names, so that whoever reads a tensor of the file reads it here, rounded to nearest, ties to even.
    Weights are the file's own, exactly.

    Args:
        file: whose inputs and outputs are float32; with the op's nodes and their functions, or flat.

    Raises:
        onnx.shape_inference.InferenceError: the file's types contradict each other.
    """
    inferred = onnx.shape_inference.infer_shapes(file, check_type=True, strict_mode=True).graph.value_info
    rounded = {value.name for value in inferred if value.type.tensor_type.elem_type == _BFLOAT16}
    emulation = onnx.ModelProto()
    emulation.CopyFrom(file)
    graph = emulation.graph
    nodes = [new for node in file.graph.node for new in _emulated(node, rounded)]
    del graph.node[:]
    graph.node.extend(nodes)
    for tensor in graph.initializer:
        if tensor.data_type == _BFLOAT16:
            exact = onnx.numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(exact, tensor.name))
    for value in graph.value_info:
        if value.type.tensor_type.elem_type == _BFLOAT16:
            value.type.tensor_type.elem_type = _FLOAT
    return emulation


def _emulated(node: NodeProto, rounded: set[str]) -> Iterator[NodeProto]:
    copy = NodeProto()
    copy.CopyFrom(node)
    for attribute in copy.attribute:
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == _BFLOAT16:
            attribute.i = _FLOAT
    casts = []
    for index, name in enumerate(node.output):
        if name in rounded:
            exact, narrow = f"{name}.exact", f"{name}.narrow"
            copy.output[index] = exact
            casts.append(onnx.helper.make_node("Cast", [exact], [narrow], name=f"round.{name}", to=_BFLOAT16))
            casts.append(onnx.helper.make_node("Cast", [narrow], [name], name=f"widen.{name}", to=_FLOAT))
    yield copy
    yield from casts
