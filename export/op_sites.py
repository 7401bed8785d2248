"""Where the op sits in an exported graph, so that every node can be checked on what it really reads and writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from export.op import OpForm
from export.op_nodes import OpNode, cbn_nodes
from export.op_tables import read_tables
from export.rounding import OpTables

__all__ = ["OpSite", "find_sites", "tap"]


@dataclass(frozen=True)
class OpSite:
    """One node of the op.

    Attributes:
        layer: the node's name, the layer's qualified name in the checkpoint.
        form: which form of the op.
        x: name of the value it normalises.
        residual: name of the value it adds, or ``None``.
        y: name of its result.
        tables: its constants.
        dtype: of X, residual and Y: float32, float16 or bfloat16.
    """

    layer: str
    form: OpForm
    x: str
    residual: str | None
    y: str
    tables: OpTables
    dtype: ir.DataType = ir.DataType.FLOAT


def find_sites(graph: ir.Model) -> list[OpSite]:
    """Every node of the op in ``graph``.

    Raises:
        ValueError: a node's table is no constant.
    """
    return [_site(op) for op in cbn_nodes(graph)]


def tap(model: onnx.ModelProto, sites: Sequence[OpSite]) -> onnx.ModelProto:
    """A copy of ``model`` that also returns what every site reads and writes, in the site's dtype.

    Those of bfloat16 are taken from the file's emulation, where they are float32 (:mod:`export.precision.emulation`).
    """
    tapped = onnx.ModelProto()
    tapped.CopyFrom(model)
    present = {output.name for output in model.graph.output} | {value.name for value in model.graph.input}
    dtypes = {name: site.dtype for site in sites for name in (site.x, site.residual, site.y) if name}
    for name in sorted(dtypes.keys() - present):
        element = onnx.TensorProto.FLOAT if dtypes[name] == ir.DataType.BFLOAT16 else int(dtypes[name])
        tapped.graph.output.append(onnx.helper.make_tensor_value_info(name, element, None))
    return tapped


def _site(op: OpNode) -> OpSite:
    tables, residual = read_tables(op), op.inputs.get("residual")
    if tables is None:
        raise ValueError(f"the tables of {op.node.name} are not all constants")
    return OpSite(
        layer=str(op.node.name),
        form=op.form,
        x=str(op.inputs["X"].name),
        residual=None if residual is None else str(residual.name),
        y=str(op.node.outputs[0].name),
        tables=tables,
        dtype=op.inputs["X"].dtype or ir.DataType.FLOAT,
    )
