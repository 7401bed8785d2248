"""What is linear in every channel right before the op moves into its tables: x = gain x' + offset.

With v = var + epsilon, the op of gain x' + offset is the op of x' with

    mean' = (mean - offset) / gain     v' = v / gain^2     scale' = scale sign(gain)     bias' = bias

because (gain x' + offset - mean)^2 / v = (x' - mean')^2 / v', and log v = log v' + log gain^2, whose last term all
components share: the posterior is the same.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from export.channel_affine import channel_affine, conv_bias
from export.op_nodes import OpNode, cbn_nodes, only_reader
from export.op_tables import read_tables, write_tables
from export.rounding import OpTables

__all__ = ["FoldLinearBeforePass"]

# Beyond these the squares and reciprocals of the op's arithmetic leave float32.
_SMALLEST_VARIANCE, _LARGEST_VARIANCE = 1e-20, 1e20
# Standard deviations between a mean and 0: beyond, rounding the mean to float32 moves the Gaussian noticeably.
_FARTHEST_MEAN = 64.0

Array = NDArray[np.float64]


class FoldLinearBeforePass(ir.passes.InPlacePass):
    """Fold Add, Sub, Mul, Div by per-channel constants, BatchNormalization and a Conv's bias into the op after them.

    Folded again and again, so that a chain of them goes. Not folded: a value that something else reads too or that is
    an output of the model, a constant that differs within a channel, a gain of 0, a gain or an offset so far out that
    the new tables would be less exact in float32 than the old ones, tables that are no constants.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fold until nothing matches."""
        modified = False
        while (match := _first_match(model)) is not None:
            write_tables(model.graph, match.op, match.tables)
            if match.source is None:
                _drop_bias(model.graph, match.node)
            else:
                match.op.node.replace_input_with(0, match.source)
                model.graph.remove(match.node, safe=True)
            modified = True
        return ir.passes.PassResult(model, modified)

    def ensures(self, model: ir.Model) -> None:
        """No match is left."""
        match = _first_match(model)
        if match is not None:
            raise ir.passes.PostconditionError(f"{match.op.node.name} still follows a {match.node.op_type} to fold")


class _Match(NamedTuple):
    """``op`` with ``tables`` may read ``source`` in place of ``node``'s result, or ``node`` without its bias (None)."""

    op: OpNode
    node: ir.Node
    source: ir.Value | None
    tables: OpTables


def _first_match(model: ir.Model) -> _Match | None:
    return next((match for op in cbn_nodes(model) if (match := _match(op)) is not None), None)


def _match(op: OpNode) -> _Match | None:
    x, tables = op.inputs["X"], read_tables(op)
    node = x.producer()
    if node is None or tables is None or only_reader(x) is None:
        return None
    bias = conv_bias(node)
    if bias is not None:
        folded, source = _folded(tables, np.ones_like(bias), bias), None
    else:
        affine = channel_affine(node)
        if affine is None:
            return None
        folded, source = _folded(tables, affine.gain, affine.offset), affine.source
    return None if folded is None else _Match(op, node, source, folded)


def _folded(tables: OpTables, gain: Array, offset: Array) -> OpTables | None:
    """The tables by the equations above, or ``None`` where float32 cannot hold them."""
    if not np.all(gain):
        return None
    _, mean, var, scale, _ = tables.float64()
    epsilon = float(np.float32(tables.epsilon))
    old, new = np.abs(mean), np.abs(mean - offset)
    if np.any(new > np.maximum(old, _FARTHEST_MEAN * np.sqrt(var + epsilon))):
        return None
    if np.any(np.abs(gain) != 1.0):
        variance = (var + epsilon) / gain**2
        if variance.min() < _SMALLEST_VARIANCE or variance.max() > _LARGEST_VARIANCE:
            return None
        # Only the sum var + epsilon counts. At most half of the smallest one keeps var positive and the sum exact.
        epsilon = float(np.float32(min(epsilon, variance.min() / 2)))
        var = variance - epsilon
    return dataclasses.replace(
        tables,
        mean=((mean - offset) / gain).astype(np.float32),
        var=var.astype(np.float32),
        scale=(scale * np.sign(gain)).astype(np.float32),
        epsilon=epsilon,
    )


def _drop_bias(graph: ir.Graph, conv: ir.Node) -> None:
    attributes = list(conv.attributes.values())
    bare = ir.Node(conv.domain, conv.op_type, conv.inputs[:2], attributes, num_outputs=1, name=conv.name)
    ir.convenience.replace_nodes_and_values(graph, conv, [conv], [bare], [conv.outputs[0]], [bare.outputs[0]])
