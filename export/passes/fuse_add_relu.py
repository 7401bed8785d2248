"""Relu(CompoundBatchNormalization(x) + residual) becomes CompoundBatchNormalizationAddRelu(x, residual)."""

from __future__ import annotations

from typing import NamedTuple

import onnx_ir as ir

from export.op import ADD_RELU, PLAIN
from export.op_nodes import OpNode, cbn_nodes, only_consumer, replace_by_fused

__all__ = ["FuseAddReluPass"]


class FuseAddReluPass(ir.passes.InPlacePass):
    """Fuse a residual block's end into its last normalisation; the op may be either operand of the Add.

    Not fused: a normalised value or a sum that something else reads too, an Add that broadcasts (the shapes of both
    operands must be known and equal), ``x + x``, an op with a posterior output.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fuse every match; where both operands are the op, the one that comes later takes the other as residual."""
        modified = False
        # Later nodes first: of two ops that meet in one Add, the later one is rewritten and its Add is gone.
        for op in reversed(cbn_nodes(model)):
            match = _match(op)
            if match is not None:
                inputs = [op.inputs["X"], match.residual, *op.tables]
                replace_by_fused(model.graph, op, ADD_RELU, inputs, [op.node, match.add, match.relu])
                modified = True
        return ir.passes.PassResult(model, modified)

    def ensures(self, model: ir.Model) -> None:
        """Every fused node's residual is shaped like its result."""
        for op in cbn_nodes(model):
            if op.form == ADD_RELU and not _same_shape(op.inputs["residual"], op.node.outputs[0]):
                raise ir.passes.PostconditionError(f"{op.node.name} was fused with a residual of another shape")


class _Match(NamedTuple):
    add: ir.Node
    relu: ir.Node
    residual: ir.Value


def _match(op: OpNode) -> _Match | None:
    if op.form != PLAIN or op.has_posterior:
        return None
    normalised = op.node.outputs[0]
    add = only_consumer(normalised, "Add")
    relu = None if add is None else only_consumer(add.outputs[0], "Relu")
    if add is None or relu is None:
        return None
    left, right = add.inputs
    residual = right if left is normalised else left
    if residual is None or not _same_shape(residual, normalised):
        return None
    return _Match(add, relu, residual)


def _same_shape(left: ir.Value, right: ir.Value) -> bool:
    return left.shape is not None and right.shape is not None and left.shape == right.shape
