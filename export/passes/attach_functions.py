"""Give the model the function bodies of the op's forms that it uses, so that it runs where our kernel is absent."""

from __future__ import annotations

import onnx_ir as ir

from export.function_body import function_body
from export.op import DOMAIN, FORMS, VERSION
from export.op_nodes import cbn_nodes

__all__ = ["AttachFunctionsPass"]


class AttachFunctionsPass(ir.passes.InPlacePass):
    """Attach one FunctionProto per form in use. Runs after every optimiser: optimisers inline functions away."""

    def requires(self, model: ir.Model) -> None:
        """All nodes of a form have the same number of outputs, as a function body has one number."""
        for op_type, counts in _output_counts(model).items():
            if len(counts) > 1:
                raise ir.passes.PreconditionError(f"some {op_type} nodes have a posterior output and some do not")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Attach the bodies and import their domain."""
        counts = _output_counts(model)
        for op_type, outputs in counts.items():
            body = function_body(FORMS[op_type], with_posterior=outputs == {2})
            function = ir.serde.deserialize_function(body)
            model.functions[function.identifier()] = function
            model.opset_imports[DOMAIN] = VERSION
        return ir.passes.PassResult(model, bool(counts))

    def ensures(self, model: ir.Model) -> None:
        """Exactly the forms in use have a body."""
        attached = {name for domain, name, _ in model.functions if domain == DOMAIN}
        if attached != set(_output_counts(model)):
            raise ir.passes.PostconditionError(f"functions attached: {sorted(attached)}")


def _output_counts(model: ir.Model) -> dict[str, set[int]]:
    counts: dict[str, set[int]] = {}
    for op in cbn_nodes(model):
        counts.setdefault(op.form.op_type, set()).add(len(op.node.outputs))
    return counts
