"""Keep onnxruntime's blocked layout through the op: no reordering of tensors between convolutions and our kernels.

On x86-64 onnxruntime convolves in blocks of 8 or 16 channels (its domain ``com.microsoft.nchwc``) and reorders tensors
wherever an op does not know that layout, as it does before and after every custom op. Here the graph that onnxruntime
has optimised for this machine is taken back, the reorderings around the op's nodes are removed, and the nodes become
their blocked forms, domain ``cbn.nchwc``. The result is for this machine and this onnxruntime only: it lives in memory,
never in a file that a user keeps.
"""

from __future__ import annotations

import functools
import logging
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import AttributeProto, NodeProto, TensorProto, helper

from cbn_deploy.runtime.channels_last import keep_channels_last
from cbn_deploy.runtime.native_forms import Rewriting, has_residual, is_op, kept_attributes

__all__ = ["BLOCKED_OP_DOMAIN", "block_channels", "blocked_session", "keep_blocked"]

BLOCKED_OP_DOMAIN = "cbn.nchwc"
_BLOCKED_DOMAIN = "com.microsoft.nchwc"
# What onnxruntime's blocked pooling knows.
_POOLING_ATTRIBUTES = {"auto_pad", "kernel_shape", "dilations", "strides", "pads", "ceil_mode"}
# How far answers may lie apart, of the largest: sums in another order, and 8-bit numbers that these round otherwise.
_ROUNDING, _TIES = 1e-2, 5e-2
_log = logging.getLogger(__name__)


def blocked_session(content: bytes, make_options: Callable[[], Any]) -> tuple[Any, int | None]:
    """Open a model whose nodes of the op run in the native library, in onnxruntime's own layouts where that can be.

    Args:
        content: a serialized ModelProto.
        make_options: onnxruntime SessionOptions with the library of the op registered, new ones at every call.

    Returns:
        The InferenceSession, and the channels of a block; ``None``: no node of the op is in the blocked layout, because
        this onnxruntime has none or no node can use it.

    Raises:
        Exception: onnxruntime cannot load the model.
    """
    planar, model = _optimized(content, make_options)
    if model is None:
        return planar, None
    block = block_channels()
    if block is not None and not keep_blocked(model, block):
        block = None
    quantized = keep_channels_last(model)
    if block is None and not quantized:
        return planar, None
    options = make_options()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # done already
    try:
        rewritten = _open(model.SerializeToString(), options)
    except Exception as error:  # noqa: BLE001 - onnxruntime's exceptions share no public base class
        _not_used(error)
        return planar, None
    if not _same_answers(planar, rewritten, _TIES if quantized else _ROUNDING):
        _not_used("this onnxruntime's does not give the same answers")
        return planar, None
    return rewritten, block


def _optimized(content: bytes, make_options: Callable[[], Any]) -> tuple[Any, onnx.ModelProto | None]:
    """A session, and its graph as onnxruntime optimised it for this machine; ``None`` if that cannot be had."""
    try:
        with tempfile.TemporaryDirectory(prefix="cbn-") as folder:
            path = Path(folder) / "optimized.onnx"
            options = make_options()
            options.optimized_model_filepath = str(path)
            return _open(content, options), onnx.load_model_from_string(path.read_bytes())
    except Exception as error:  # noqa: BLE001 - a full disk, or a model that cannot be loaded at all: the next line tells
        planar = _open(content, make_options())
        _not_used(error)
        return planar, None


def _not_used(reason: object) -> None:
    _log.warning("Tensors are reordered around the op, which costs some time: %s.", " ".join(str(reason).split()))


def _open(content: bytes, options: Any) -> Any:
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _same_answers(planar: Any, rewritten: Any, limit: float) -> bool:
    """On one batch of noise: a layout that is not the one we know gives nonsense, not rounding errors."""
    rng = np.random.default_rng(0)
    feeds = {
        value.name: rng.normal(size=[size if isinstance(size, int) else 1 for size in value.shape]).astype(np.float32)
        for value in planar.get_inputs()
    }
    for expected, found in zip(planar.run(None, feeds), rewritten.run(None, feeds), strict=True):
        largest = float(np.abs(expected[np.isfinite(expected)]).max(initial=1e-6))
        if not np.allclose(expected, found, rtol=0.0, atol=limit * largest, equal_nan=True):
            return False
    return True


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
        found = _open(model.SerializeToString(), options).run(None, {"x": values})[0].ravel()
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
