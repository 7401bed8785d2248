"""Weights and activations in float16 or bfloat16; the op's tables, and with them its densities, stay float32."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from export.op import TABLES
from export.op_nodes import form_of

__all__ = ["ToSixteenBitsPass"]

# Ops whose floating-point inputs and outputs are of one type, which may have 16 bits.
# fmt: off
_UNIFORM = frozenset((
    "Add", "AveragePool", "Concat", "Conv", "Flatten", "Gemm", "GlobalAveragePool", "Identity", "MatMul", "MaxPool",
    "Mul", "Pad", "ReduceMean", "Relu", "Reshape", "Slice", "Squeeze", "Sub", "Transpose", "Unsqueeze",
))
# fmt: on
_TYPES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
# Where Conv and pooling take bfloat16; what changed since opset 18 in the ops above is the types that they take.
_BFLOAT16_OPSET, _BFLOAT16_IR_VERSION = 22, 10


class ToSixteenBitsPass(ir.passes.InPlacePass):
    """Every value between the model's inputs and outputs becomes ``dtype``; those stay float32, by a Cast.

    The op is used with T = ``dtype``: X, residual and Y have 16 bits, its tables and its posterior are float32. A
    bfloat16 graph gets opset 22, the first in which Conv takes the type.

    Args:
        dtype: float16 or bfloat16.
    """

    def __init__(self, dtype: ir.DataType) -> None:
        super().__init__()
        if dtype not in _TYPES:
            raise ValueError(f"dtype must be FLOAT16 or BFLOAT16, got {dtype}")
        self._dtype = dtype

    def requires(self, model: ir.Model) -> None:
        """The type of every value is known, and every node's follow its first input's."""
        for node in model.graph:
            unknown = [value.name for value in (*node.inputs, *node.outputs) if value is not None and not value.dtype]
            if unknown:
                raise ir.passes.PreconditionError(f"the type of {unknown} at {node.name} is not known")
            if form_of(node) is None and (node.domain, node.op_type in _UNIFORM) != ("", True):
                raise ir.passes.PreconditionError(f"{node.op_type} ({node.name}) is not known to work in 16 bits")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Convert."""
        graph = model.graph
        nodes = list(graph)
        halves: dict[ir.Value, ir.Value] = {}
        for node in nodes:
            for index in self._float_inputs(node):
                value = node.inputs[index]
                if value is not None and (value.is_initializer() or value.is_graph_input()):
                    node.replace_input_with(index, self._half_of(graph, value, halves))
        for node in nodes:
            for value in node.outputs[:1]:  # a second one is the posterior
                if value.dtype == ir.DataType.FLOAT:
                    value.dtype = self._dtype
                    if value.is_graph_output():
                        _cast_output(graph, node, value)
        for name in [name for name, value in graph.initializers.items() if not value.uses()]:
            del graph.initializers[name]
        if self._dtype == ir.DataType.BFLOAT16:
            _raise_opset(model)
        return ir.passes.PassResult(model, True)

    def ensures(self, model: ir.Model) -> None:
        """Inputs, outputs and tables are float32; nothing else is."""
        for value in (*model.graph.inputs, *model.graph.outputs):
            if value.dtype != ir.DataType.FLOAT:
                raise ir.passes.PostconditionError(f"{value.name} is {value.dtype}, not float32")
        for node in model.graph:
            if node.op_type == "Cast":
                continue
            wrong = [node.inputs[i] for i in self._float_inputs(node)]
            names = [value.name for value in wrong if value is not None and value.dtype == ir.DataType.FLOAT]
            if names:
                raise ir.passes.PostconditionError(f"{node.name} still reads {names} in float32")

    def _float_inputs(self, node: ir.Node) -> list[int]:
        """Indices of the inputs that get 16 bits: all that are float32, but the tables of the op."""
        form = form_of(node)
        count = len(node.inputs) if form is None else len(form.inputs) - len(TABLES)
        floats = (ir.DataType.FLOAT, self._dtype)
        return [i for i, v in enumerate(node.inputs[:count]) if v is not None and v.dtype in floats]

    def _half_of(self, graph: ir.Graph, value: ir.Value, halves: dict[ir.Value, ir.Value]) -> ir.Value:
        """``value``, an initializer or an input of the model, in 16 bits; each is made once."""
        if value.dtype == self._dtype:
            return value
        if value not in halves:
            name = _name_of(value, self._dtype)
            constant = ir.convenience.get_const_tensor(value)
            if constant is not None:
                with np.errstate(over="ignore"):  # float16 beyond 65504 is infinite; the accuracy gate will say so
                    tensor = ir.tensor(constant.numpy().astype(self._dtype.numpy()), name=name)
                half = ir.Value(name=name, type=ir.TensorType(self._dtype), shape=value.shape, const_value=tensor)
                graph.register_initializer(half)
            else:
                half = _cast(value, self._dtype, name)
                cast = half.producer()
                if cast is not None:
                    graph.insert_before(graph[0], cast)
            halves[value] = half
        return halves[value]


def _name_of(value: ir.Value, dtype: ir.DataType) -> str:
    return f"{value.name}_{dtype.name.lower()}"


def _raise_opset(model: ir.Model) -> None:
    model.ir_version = max(model.ir_version or 0, _BFLOAT16_IR_VERSION)
    for opsets in (model.opset_imports, *(function.opset_imports for function in model.functions.values())):
        opsets[""] = max(opsets.get("", 0), _BFLOAT16_OPSET)


def _cast_output(graph: ir.Graph, node: ir.Node, value: ir.Value) -> None:
    """Give the output's name, in float32, to a Cast of ``value``."""
    name = str(value.name)
    value.name = _name_of(value, value.dtype or ir.DataType.FLOAT)
    output = _cast(value, ir.DataType.FLOAT, name)
    cast = output.producer()
    if cast is not None:
        graph.insert_after(node, cast)
    graph.outputs[list(graph.outputs).index(value)] = output


def _cast(value: ir.Value, dtype: ir.DataType, name: str) -> ir.Value:
    node = ir.node("Cast", [value], {"to": int(dtype)}, name=f"cast_{name}")
    output = node.outputs[0]
    output.name, output.shape, output.dtype = name, value.shape, dtype
    return output
