"""Read a node's tables and write others in their place."""

from __future__ import annotations

from itertools import count

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from export.op import DEFAULT_DENSITY_SCALE, DEFAULT_EPSILON, TABLES
from export.op_nodes import OpNode
from export.rounding import OpTables

__all__ = ["new_initializer", "read_tables", "write_tables"]


def read_tables(op: OpNode) -> OpTables | None:
    """The constants of ``op``; ``None`` unless all five tables are constants."""
    tensors = [ir.convenience.get_const_tensor(value) for value in op.tables]
    arrays = [np.asarray(tensor.numpy(), dtype=np.float32) for tensor in tensors if tensor is not None]
    if len(arrays) < len(TABLES):
        return None
    tau, mean, var, scale, bias = arrays
    epsilon, density_scale = op.node.attributes.get("epsilon"), op.node.attributes.get("density_scale")
    return OpTables(
        tau,
        mean,
        var,
        scale,
        bias,
        DEFAULT_EPSILON if epsilon is None else epsilon.as_float(),
        DEFAULT_DENSITY_SCALE if density_scale is None else density_scale.as_float(),
    )


def write_tables(graph: ir.Graph, op: OpNode, tables: OpTables) -> None:
    """Make ``tables`` the inputs and attributes of ``op``'s node.

    They become initializers of their own: the old ones may belong to other nodes too.
    """
    first = op.form.inputs.index(TABLES[0])
    for index, name in enumerate(TABLES, start=first):
        old = op.node.inputs[index]
        op.node.replace_input_with(index, new_initializer(graph, f"{op.node.name}.{name}", getattr(tables, name)))
        if old is not None and old.is_initializer() and not old.uses() and not old.is_graph_output():
            graph.initializers.pop(str(old.name))
    op.node.attributes["epsilon"] = ir.AttrFloat32("epsilon", tables.epsilon)
    op.node.attributes["density_scale"] = ir.AttrFloat32("density_scale", tables.density_scale)


def new_initializer(graph: ir.Graph, name: str, array: NDArray[np.floating]) -> ir.Value:
    """A float32 initializer of ``graph`` called ``name``, or ``name.1`` and so on where that is taken."""
    free = next(candidate for i in count() if (candidate := f"{name}.{i}" if i else name) not in graph.initializers)
    tensor = ir.Tensor(array.astype(np.float32), name=free)
    value = ir.Value(name=free, shape=tensor.shape, type=ir.TensorType(ir.DataType.FLOAT), const_value=tensor)
    graph.register_initializer(value)
    return value
