"""Replace the op's nodes by their bodies: a flat graph for readers without function support."""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from export.op import DOMAIN
from export.op_nodes import cbn_nodes

__all__ = ["InlineFunctionsPass"]


class InlineFunctionsPass(ir.passes.InPlacePass):
    """Inline every function; the values that the op's nodes read and wrote keep their names."""

    def requires(self, model: ir.Model) -> None:
        """Every node of the op has its function."""
        for op in cbn_nodes(model):
            if op.node.op_identifier() not in model.functions:
                raise ir.passes.PreconditionError(f"{op.form.op_type} has no function body; attach functions first")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Inline and drop the domain that nothing uses any more."""
        modified = common_passes.InlinePass()(model).modified
        model.opset_imports.pop(DOMAIN, None)
        return ir.passes.PassResult(model, modified)

    def ensures(self, model: ir.Model) -> None:
        """Neither the op nor a function is left."""
        if cbn_nodes(model) or model.functions:
            raise ir.passes.PostconditionError("the graph is not flat")
