"""A mixture of one Gaussian is batch normalisation: it moves into the convolution before it.

y = A (x - mean) + bias with A = scale / sqrt(var + epsilon), so a Conv with weights W and bias b that feeds only this
op becomes a Conv with weights A W and bias A (b - mean) + bias. Elsewhere the op becomes BatchNormalization.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from export.channel_affine import conv_bias
from export.op import PLAIN
from export.op_nodes import OpNode, cbn_nodes, only_reader
from export.op_tables import new_initializer, read_tables
from export.rounding import OpTables

__all__ = ["FoldSingleGaussianPass"]


class FoldSingleGaussianPass(ir.passes.InPlacePass):
    """Replace every op of one component whose tables are constants by standard ops.

    Runs before the activations are fused. Left alone: an op whose posterior is asked for.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replace every match."""
        modified = False
        for op in cbn_nodes(model):
            tables = _tables_of_one(op)
            if tables is None:
                continue
            conv, weight = op.inputs["X"].producer(), _conv_weight(op)
            if conv is None or weight is None:
                _to_batch_norm(model.graph, op, tables)
            else:
                _into_conv(model.graph, op, tables, conv, weight)
            modified = True
        return ir.passes.PassResult(model, modified)

    def ensures(self, model: ir.Model) -> None:
        """No match is left."""
        for op in cbn_nodes(model):
            if _tables_of_one(op) is not None:
                raise ir.passes.PostconditionError(f"{op.node.name} has one component and is still there")


def _tables_of_one(op: OpNode) -> OpTables | None:
    tables = read_tables(op) if op.form == PLAIN and not op.has_posterior else None
    return None if tables is None or len(tables.tau) != 1 else tables


def _conv_weight(op: OpNode) -> NDArray[np.float64] | None:
    """The constant float32 weights of the Conv that feeds ``op`` alone; its bias, if any, must be constant too."""
    x = op.inputs["X"]
    conv = x.producer()
    if conv is None or (conv.domain, conv.op_type) != ("", "Conv") or only_reader(x) is None:
        return None
    tensor = None if conv.inputs[1] is None else ir.convenience.get_const_tensor(conv.inputs[1])
    if tensor is None or tensor.dtype != ir.DataType.FLOAT or (len(conv.inputs) > 2 and conv_bias(conv) is None):
        return None
    return np.asarray(tensor.numpy(), dtype=np.float64)


def _into_conv(graph: ir.Graph, op: OpNode, tables: OpTables, conv: ir.Node, weight: NDArray[np.float64]) -> None:
    _, (mean,), (var,), (scale,), (bias,) = tables.float64()
    gain, old_bias = scale / np.sqrt(var + tables.epsilon), conv_bias(conv)
    shift = -mean if old_bias is None else old_bias - mean
    inputs = [
        conv.inputs[0],
        new_initializer(graph, f"{op.node.name}.conv.weight", gain.reshape(-1, *[1] * (weight.ndim - 1)) * weight),
        new_initializer(graph, f"{op.node.name}.conv.bias", gain * shift + bias),
    ]
    folded = ir.Node("", "Conv", inputs, list(conv.attributes.values()), num_outputs=1, name=conv.name)
    result = op.node.outputs[0]
    ir.convenience.replace_nodes_and_values(graph, op.node, [op.node, conv], [folded], [result], [folded.outputs[0]])


def _to_batch_norm(graph: ir.Graph, op: OpNode, tables: OpTables) -> None:
    rows = {name: getattr(tables, name)[0] for name in ("scale", "bias", "mean", "var")}
    constants = [new_initializer(graph, f"{op.node.name}.{name}", row) for name, row in rows.items()]
    node = ir.Node(
        "",
        "BatchNormalization",
        [op.inputs["X"], *constants],
        [ir.AttrFloat32("epsilon", tables.epsilon)],
        num_outputs=1,
        name=op.node.name,
    )
    result = op.node.outputs[0]
    ir.convenience.replace_nodes_and_values(graph, op.node, [op.node], [node], [result], [node.outputs[0]])
