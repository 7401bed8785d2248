"""Name every op node after its layer, so that errors, profiles and posterior outputs speak the model's language."""

from __future__ import annotations

import onnx_ir as ir

from export.op_nodes import OpNode, cbn_nodes

__all__ = ["NameNodesPass"]


class NameNodesPass(ir.passes.InPlacePass):
    """``layer1.0.bn1.tau`` as the op's tau gives the node the name ``layer1.0.bn1``.

    Runs before initializers are de-duplicated: two layers with equal tables would share one name afterwards. A layer
    that is called twice gets ``#2`` and so on after its name.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rename the nodes."""
        taken: set[str] = set()
        for op in cbn_nodes(model):
            op.node.name = _unique(_layer_name(op), taken)
        return ir.passes.PassResult(model, bool(taken))

    def ensures(self, model: ir.Model) -> None:
        """Every op node has a name of its own."""
        names = [op.node.name for op in cbn_nodes(model)]
        if None in names or len(set(names)) != len(names):
            raise ir.passes.PostconditionError(f"op nodes share names: {names}")


def _layer_name(op: OpNode) -> str:
    layer, dot, table = (op.inputs["tau"].name or "").rpartition(".")
    return layer if dot and table == "tau" else op.form.op_type


def _unique(name: str, taken: set[str]) -> str:
    candidate, count = name, 1
    while candidate in taken:
        count += 1
        candidate = f"{name}#{count}"
    taken.add(candidate)
    return candidate
