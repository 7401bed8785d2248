"""What the rewrites of an optimised graph share: the op's forms, and how nodes that nothing reads go."""

from __future__ import annotations

from onnx import AttributeProto, NodeProto

from cbn_deploy.native_library import OP_DOMAIN

__all__ = ["has_residual", "is_op", "kept_attributes", "needed_nodes"]

_FORMS = {
    "CompoundBatchNormalization": False,
    "CompoundBatchNormalizationRelu": False,
    "CompoundBatchNormalizationAddRelu": True,
}
_KEPT_ATTRIBUTES = ("epsilon", "density_scale")


def is_op(node: NodeProto) -> bool:
    """Whether the node is one of the op's planar forms."""
    return node.domain == OP_DOMAIN and node.op_type in _FORMS


def has_residual(node: NodeProto) -> bool:
    """Whether the second input of this node of the op is a residual."""
    return _FORMS[node.op_type]


def kept_attributes(node: NodeProto) -> list[AttributeProto]:
    """The attributes that every form of the op has."""
    return [attribute for attribute in node.attribute if attribute.name in _KEPT_ATTRIBUTES]


def needed_nodes(nodes: list[NodeProto], outputs: set[str]) -> list[NodeProto]:
    """The nodes that something reads, in order."""
    wanted = set(outputs)
    kept: list[NodeProto] = []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            kept.append(node)
            wanted.update(node.input)
    return kept[::-1]
