"""CompoundBatchNormalization -> Relu becomes CompoundBatchNormalizationRelu."""

from __future__ import annotations

import onnx_ir as ir

from export.op import PLAIN, RELU
from export.op_nodes import OpNode, cbn_nodes, only_consumer, replace_by_fused

__all__ = ["FuseReluPass"]


class FuseReluPass(ir.passes.InPlacePass):
    """Fuse an activation into the op that feeds it.

    Only where nothing else reads the normalised value and the op has no posterior output.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fuse every match."""
        modified = False
        for op in cbn_nodes(model):
            relu = _own_relu(op)
            if relu is not None:
                replace_by_fused(model.graph, op, RELU, list(op.inputs.values()), [op.node, relu])
                modified = True
        return ir.passes.PassResult(model, modified)

    def ensures(self, model: ir.Model) -> None:
        """No match is left."""
        for op in cbn_nodes(model):
            if _own_relu(op) is not None:
                raise ir.passes.PostconditionError(f"{op.node.name} is still followed by its own Relu")


def _own_relu(op: OpNode) -> ir.Node | None:
    if op.form != PLAIN or op.has_posterior:
        return None
    return only_consumer(op.node.outputs[0], "Relu")
