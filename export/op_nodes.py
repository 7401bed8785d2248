"""Questions that several passes ask a graph, and the one edit that several passes make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from export.op import DOMAIN, FORMS, TABLES, OpForm

__all__ = ["OpNode", "cbn_nodes", "form_of", "only_consumer", "only_reader", "replace_by_fused"]


@dataclass(frozen=True)
class OpNode:
    """A node of the op, its inputs resolved.

    Attributes:
        node: the node itself.
        form: which form of the op it is.
        inputs: input name of the form -> value.
    """

    node: ir.Node
    form: OpForm
    inputs: dict[str, ir.Value]

    @property
    def tables(self) -> list[ir.Value]:
        """tau, mean, var, scale, bias."""
        return [self.inputs[name] for name in TABLES]

    @property
    def has_posterior(self) -> bool:
        """Whether the node names its second output."""
        return len(self.node.outputs) > 1


def cbn_nodes(model: ir.Model) -> list[OpNode]:
    """The op's nodes in any form, in graph order.

    Raises:
        ValueError: a node has not the inputs of its form.
    """
    nodes = []
    for node in model.graph:
        form = form_of(node)
        if form is None:
            continue
        inputs = {name: value for name, value in zip(form.inputs, node.inputs, strict=False) if value is not None}
        if len(inputs) != len(form.inputs) or len(node.inputs) != len(form.inputs):
            raise ValueError(f"{form.op_type} node {node.name!r} must have the inputs {', '.join(form.inputs)}")
        nodes.append(OpNode(node, form, inputs))
    return nodes


def form_of(node: ir.Node) -> OpForm | None:
    """Which form of the op ``node`` is, or ``None``."""
    return FORMS.get(node.op_type) if node.domain == DOMAIN else None


def only_reader(value: ir.Value) -> ir.Node | None:
    """The single node that reads ``value``, once, if the value is no graph output."""
    uses = list(value.uses())
    return None if len(uses) != 1 or value.is_graph_output() else uses[0].node


def only_consumer(value: ir.Value, op_type: str) -> ir.Node | None:
    """:func:`only_reader`, if it is a standard ``op_type``."""
    node = only_reader(value)
    return node if node is not None and (node.domain, node.op_type) == ("", op_type) else None


def replace_by_fused(
    graph: ir.Graph, op: OpNode, form: OpForm, inputs: Sequence[ir.Value], absorbed: list[ir.Node]
) -> None:
    """Put ``op``, rewritten as ``form``, in the place of the last ``absorbed`` node and remove all of them."""
    node, last = op.node, absorbed[-1]
    fused = ir.Node(node.domain, form.op_type, inputs, list(node.attributes.values()), num_outputs=1, name=node.name)
    ir.convenience.replace_nodes_and_values(graph, last, absorbed, [fused], [last.outputs[0]], [fused.outputs[0]])
