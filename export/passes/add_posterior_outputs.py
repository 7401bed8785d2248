"""Make every layer's posterior an output of the model: ``posterior.<layer>``, float32 (batch, M, *spatial)."""

from __future__ import annotations

import onnx_ir as ir

from cbn_deploy.runtime.signature import POSTERIOR_PREFIX
from export.op_nodes import OpNode, cbn_nodes

__all__ = ["AddPosteriorOutputsPass"]


class AddPosteriorOutputsPass(ir.passes.InPlacePass):
    """Give every node of the op its second output and list it among the graph's outputs."""

    def requires(self, model: ir.Model) -> None:
        """Nodes are named and have no posterior yet; the shapes that the outputs need are known."""
        for op in cbn_nodes(model):
            if not op.node.name or op.has_posterior:
                raise ir.passes.PreconditionError(f"node {op.node.name!r} has no name or has a posterior already")
            _posterior_shape(op)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replace each node by one with two outputs."""
        ops = cbn_nodes(model)
        for op in ops:
            node = op.node
            replacement = ir.Node(
                node.domain, node.op_type, node.inputs, list(node.attributes.values()), num_outputs=2, name=node.name
            )
            posterior = replacement.outputs[1]
            posterior.name = f"{POSTERIOR_PREFIX}{node.name}"
            posterior.dtype = ir.DataType.FLOAT
            posterior.shape = _posterior_shape(op)
            ir.convenience.replace_nodes_and_values(
                model.graph, node, [node], [replacement], [node.outputs[0]], [replacement.outputs[0]]
            )
            model.graph.outputs.append(posterior)
        return ir.passes.PassResult(model, bool(ops))

    def ensures(self, model: ir.Model) -> None:
        """Every node's posterior is a graph output."""
        for op in cbn_nodes(model):
            if not op.has_posterior or not op.node.outputs[1].is_graph_output():
                raise ir.passes.PostconditionError(f"the posterior of {op.node.name} is not an output")


def _posterior_shape(op: OpNode) -> ir.Shape:
    x, tau = op.inputs["X"].shape, op.inputs["tau"].shape
    if x is None or tau is None:
        raise ir.passes.PreconditionError(f"{op.node.name}: the shapes of X and tau must be known")
    return ir.Shape([x[0], tau[0], *x[2:]])
