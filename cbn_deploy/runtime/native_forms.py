"""What the rewrites of an optimised graph share: the op's forms, and the pass over the nodes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

from onnx import AttributeProto, ModelProto, NodeProto, helper

from cbn_deploy.op_forms import OP_DOMAIN, OP_FORMS

__all__ = ["Rewriting", "has_residual", "is_op", "kept_attributes"]

_KEPT_ATTRIBUTES = ("epsilon", "density_scale")


def is_op(node: NodeProto) -> bool:
    """Whether the node is one of the op's planar forms."""
    return node.domain == OP_DOMAIN and node.op_type in OP_FORMS


def has_residual(node: NodeProto) -> bool:
    """Whether the second input of this node of the op is a residual."""
    return OP_FORMS[node.op_type].residual


def kept_attributes(node: NodeProto) -> list[AttributeProto]:
    """The attributes that every form of the op has."""
    return [attribute for attribute in node.attribute if attribute.name in _KEPT_ATTRIBUTES]


class Rewriting(ABC):
    """One pass over the sorted nodes of an optimised graph, which replaces nodes of the op by forms of another domain.

    Attributes:
        replaced: how many nodes of the op were replaced.
    """

    def __init__(self, model: ModelProto, domain: str) -> None:
        self._model = model
        self._domain = domain
        self._outputs = {output.name for output in model.graph.output}
        self._nodes = [_copy(node) for node in model.graph.node]
        self._renamed: dict[str, str] = {}  # value -> the equal one that replaces it
        self.replaced = 0

    def apply(self) -> int:
        """Rewrite the model in place, or leave it alone if there is nothing to replace; returns :attr:`replaced`."""
        nodes: list[NodeProto] = []
        for node in self._nodes:
            for i, name in enumerate(node.input):
                node.input[i] = self._renamed.get(name, name)
            nodes += self._visit(node)
        if self.replaced:
            del self._model.graph.node[:]
            self._model.graph.node.extend(_needed(nodes, self._outputs))
            self._model.opset_import.append(helper.make_opsetid(self._domain, 1))
        return self.replaced

    @abstractmethod
    def _visit(self, node: NodeProto) -> Iterable[NodeProto]:
        """What stands in the place of the node."""


def _copy(node: NodeProto) -> NodeProto:
    copied = NodeProto()
    copied.CopyFrom(node)
    return copied


def _needed(nodes: list[NodeProto], outputs: set[str]) -> list[NodeProto]:
    """The nodes that something reads, in order."""
    wanted = set(outputs)
    kept: list[NodeProto] = []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            kept.append(node)
            wanted.update(node.input)
    return kept[::-1]
