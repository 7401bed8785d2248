"""Keep onnxruntime's blocked layout through the op: no reordering of tensors between convolutions and our kernels.

On x86-64 onnxruntime convolves in blocks of 8 or 16 channels (its domain ``com.microsoft.nchwc``) and reorders tensors
wherever an op does not know that layout, as it does before and after every custom op. Here the reorderings around the
op's nodes are removed from the graph that onnxruntime has optimised for this machine, and the nodes become their
blocked forms, domain ``cbn.nchwc``.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

import numpy as np
import onnx
import onnxruntime
from onnx import AttributeProto, NodeProto, TensorProto, helper

from cbn_deploy.runtime.native_forms import Rewriting, has_residual, is_op, kept_attributes

__all__ = ["BLOCKED_OP_DOMAIN", "block_channels", "keep_blocked"]

BLOCKED_OP_DOMAIN = "cbn.nchwc"
_BLOCKED_DOMAIN = "com.microsoft.nchwc"
# What onnxruntime's blocked pooling knows.
_POOLING_ATTRIBUTES = {"auto_pad", "kernel_shape", "dilations", "strides", "pads", "ceil_mode"}


@functools.cache
def block_channels() -> int | None:
    """Channels of a block in this onnxruntime on this machine; ``None``: no blocked layout, or not the one we know."""
    channels, pixels = 32, 3
    values = np.arange(2 * channels * pixels, dtype=np.float32).reshape(2, channels, 1, pixels)
    graph = helper.make_graph(
        [
            helper.make_node("ReorderInput", ["x"], ["blocked"], domain=_BLOCKED_DOMAIN),
            # onnxruntime hands out planar tensors only: what is read here is the blocked memory, as it lies.
            helper.make_node("Identity", ["blocked"], ["y"]),
        ],
        "probe",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, values.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(_BLOCKED_DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        found = session.run(None, {"x": values})[0].ravel()
    except Exception:  # noqa: BLE001 - onnxruntime's exceptions share no public base class; any means: no such layout
        return None
    for block in (8, 16):
        blocked = values.reshape(2, channels // block, block, pixels).transpose(0, 1, 3, 2)
        if np.array_equal(blocked.ravel(), found):
            return block
    return None


def keep_blocked(model: onnx.ModelProto, block: int) -> int:
    """Replace the op's nodes between reorderings by their blocked forms, in place.

    Args:
        model: as onnxruntime optimised it for this machine.
        block: from :func:`block_channels`.

    Returns:
        How many nodes were replaced.
    """
    return _Rewriting(model, block).apply()


class _Rewriting(Rewriting):
    """A planar value has a blocked twin once a reordering or a new node made one."""

    def __init__(self, model: onnx.ModelProto, block: int) -> None:
        super().__init__(model, BLOCKED_OP_DOMAIN)
        self._block = block
        self._shapes = {table.name: tuple(table.dims) for table in model.graph.initializer}
        self._blocked: dict[str, str] = {}  # planar value -> its blocked twin
        self._channels: dict[str, int] = {}  # of these planar values

    def _visit(self, node: NodeProto) -> Iterable[NodeProto]:
        if _is_reorder(node, "ReorderOutput"):
            self._blocked[node.output[0]] = node.input[0]
            self._channels[node.output[0]] = next(a.i for a in node.attribute if a.name == "channels")
        elif _is_reorder(node, "ReorderInput"):
            twin = self._blocked.get(node.input[0])
            if twin is not None:
                self._renamed[node.output[0]] = twin
                return []
            self._blocked[node.input[0]] = node.output[0]
        elif self._can_be_blocked(node):
            self.replaced += 1
            return self._replace_op(node)
        elif self._is_blocked_pooling(node):
            return self._replace(node, _BLOCKED_DOMAIN, list(node.attribute), list(node.input))
        return [node]

    def _is_blocked_pooling(self, node: NodeProto) -> bool:
        """Whether the pooling reads what the op wrote; onnxruntime itself saw a planar tensor there."""
        if node.domain or node.op_type != "MaxPool" or len(node.output) != 1:
            return False
        known = {attribute.name for attribute in node.attribute} <= _POOLING_ATTRIBUTES
        return known and self._channels.get(node.input[0], 1) % self._block == 0

    def _can_be_blocked(self, node: NodeProto) -> bool:
        if not is_op(node) or node.input[0] not in self._blocked:
            return False
        shape = self._shapes.get(node.input[-1], ())
        return len(shape) == 2 and shape[1] % self._block == 0

    def _replace_op(self, node: NodeProto) -> Iterable[NodeProto]:
        inputs = list(node.input)
        self._channels[inputs[0]] = self._shapes[inputs[-1]][1]
        if has_residual(node) and inputs[1] not in self._blocked:
            residual = inputs[1]
            self._blocked[residual] = f"{residual}_blocked"
            yield helper.make_node(
                "ReorderInput", [residual], [self._blocked[residual]], domain=_BLOCKED_DOMAIN, channels_last=0
            )
        attributes = [*kept_attributes(node), helper.make_attribute("block", self._block)]
        yield from self._replace(node, BLOCKED_OP_DOMAIN, attributes, inputs)

    def _replace(
        self, node: NodeProto, domain: str, attributes: Iterable[AttributeProto], inputs: list[str]
    ) -> Iterable[NodeProto]:
        """The node on blocked tensors, and a reordering of its result for planar readers; unread, that one goes."""
        planar = node.output[0]
        self._blocked[planar] = f"{planar}_blocked"
        self._channels[planar] = self._channels[inputs[0]]
        blocked = helper.make_node(
            node.op_type,
            [self._blocked.get(name, name) for name in inputs],
            [self._blocked[planar], *node.output[1:]],
            name=node.name,
            domain=domain,
        )
        blocked.attribute.extend(attributes)
        yield blocked
        yield helper.make_node(
            "ReorderOutput",
            [self._blocked[planar]],
            [planar],
            domain=_BLOCKED_DOMAIN,
            channels=self._channels[planar],
            channels_last=0,
        )


def _is_reorder(node: NodeProto, op_type: str) -> bool:
    if node.domain != _BLOCKED_DOMAIN or node.op_type != op_type:
        return False
    return not any(attribute.name == "channels_last" and attribute.i for attribute in node.attribute)
