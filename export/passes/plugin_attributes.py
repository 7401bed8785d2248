"""Mark the op's nodes so that TensorRT prefers a plugin of the same name over the function body."""

from __future__ import annotations

import onnx_ir as ir

from export.op_nodes import cbn_nodes

__all__ = ["PLUGIN_ATTRIBUTES", "PluginAttributesPass"]

# TensorRT's ONNX parser looks for a plugin before the local function only on nodes that carry plugin_namespace; ``aot``
# asks for the plugin's ahead-of-time compiled form. Every other reader ignores attributes that a function does not use.
PLUGIN_ATTRIBUTES = {"plugin_namespace": "cbn", "plugin_version": "1", "aot": 1}


class PluginAttributesPass(ir.passes.InPlacePass):
    """Set :data:`PLUGIN_ATTRIBUTES` on every node of the op."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Set the attributes."""
        ops = cbn_nodes(model)
        for op in ops:
            for attribute in ir.convenience.convert_attributes(PLUGIN_ATTRIBUTES):
                op.node.attributes[attribute.name] = attribute
        return ir.passes.PassResult(model, bool(ops))

    def ensures(self, model: ir.Model) -> None:
        """Every node of the op has the attributes."""
        for op in cbn_nodes(model):
            missing = [name for name in PLUGIN_ATTRIBUTES if name not in op.node.attributes]
            if missing:
                raise ir.passes.PostconditionError(f"{op.node.name} lacks {', '.join(missing)}")
