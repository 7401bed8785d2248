"""What is linear in every channel right after the op moves into its tables: gain y + offset.

The posteriors sum to 1, so gain sum_j w_j (scale_j z_j + bias_j) + offset is the op with

    scale' = gain scale     bias' = gain bias + offset
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from export.channel_affine import channel_affine
from export.op import PLAIN
from export.op_nodes import OpNode, cbn_nodes, only_reader, replace_by_fused
from export.op_tables import read_tables, write_tables
from export.rounding import OpTables

__all__ = ["FoldLinearAfterPass"]


class FoldLinearAfterPass(ir.passes.InPlacePass):
    """Fold Add, Sub, Mul, Div by per-channel constants and BatchNormalization into the op before them.

    Runs before the activations are fused. Folded again and again, so that a chain of them goes. Not folded: a
    normalised value that something else reads too or that is an output of the model, a constant that differs within a
    channel, new tables that are not finite in float32, an op with a posterior output, tables that are no constants.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fold until nothing matches."""
        modified = False
        while (match := _first_match(model)) is not None:
            write_tables(model.graph, match.op, match.tables)
            inputs = [value for value in match.op.node.inputs if value is not None]
            replace_by_fused(model.graph, match.op, PLAIN, inputs, [match.op.node, match.node])
            modified = True
        return ir.passes.PassResult(model, modified)

    def ensures(self, model: ir.Model) -> None:
        """No match is left."""
        match = _first_match(model)
        if match is not None:
            raise ir.passes.PostconditionError(f"{match.op.node.name} is still followed by a {match.node.op_type}")


class _Match(NamedTuple):
    """``op`` with ``tables`` computes what ``node`` made of its result."""

    op: OpNode
    node: ir.Node
    tables: OpTables


def _first_match(model: ir.Model) -> _Match | None:
    return next((match for op in cbn_nodes(model) if (match := _match(op)) is not None), None)


def _match(op: OpNode) -> _Match | None:
    if op.form != PLAIN or op.has_posterior:
        return None
    normalised, tables = op.node.outputs[0], read_tables(op)
    node = only_reader(normalised)
    affine = None if node is None else channel_affine(node)
    if node is None or affine is None or tables is None or affine.source is not normalised:
        return None
    *_, scale, bias = tables.float64()
    with np.errstate(over="ignore"):
        new_scale = (affine.gain * scale).astype(np.float32)
        new_bias = (affine.gain * bias + affine.offset).astype(np.float32)
    if not (np.isfinite(new_scale).all() and np.isfinite(new_bias).all()):
        return None
    return _Match(op, node, dataclasses.replace(tables, scale=new_scale, bias=new_bias))
