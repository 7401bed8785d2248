"""The op's nodes as TensorRT's plugin wants them: one array of ready tables in place of the five that a layer has.

A plugin that is compiled ahead of time is one kernel, so nothing can prepare the tables at run time; here they are
computed once, in float64, in the layout of :mod:`cbn_deploy.kernels.triton.tables`.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common_passes
from numpy.typing import NDArray

from export.op import DOMAIN, FORMS, OpForm
from export.op_nodes import OpNode, cbn_nodes
from export.op_sites import find_sites
from export.passes.plugin_attributes import PLUGIN_ATTRIBUTES
from export.rounding import OpTables

__all__ = ["COMPONENTS", "PackTablesPass", "packed_tables", "plugin_name"]

# The plugin's one attribute: M.
COMPONENTS = "components"


def plugin_name(form: OpForm, *, with_posterior: bool) -> str:
    """Name of the plugin, in the namespace ``cbn``: a plugin has a fixed number of outputs."""
    return form.op_type + ("Posterior" if with_posterior else "")


def packed_tables(tables: OpTables) -> NDArray[np.float32]:
    """Everything that the kernel needs to know of a layer: float32 ((1 + 4 M) D + M,).

    m0; for every component j the rows P_j, Q_j, A_j, B_j; then the M numbers k_j. P, Q and k are divided by log 2; a
    dead component has rows of zeros and k_j = -inf. Any m0 gives the same function (docs/op.md), so it is rounded first
    and the rest measured from what the kernel will subtract.
    """
    tau, mean, var, scale, bias = tables.float64()
    epsilon, s = float(np.float32(tables.epsilon)), float(np.float32(tables.density_scale))
    prior = tau / tau.sum()
    m0 = (prior @ mean).astype(np.float32)
    v, v0 = var + epsilon, prior @ var + epsilon
    delta = mean - m0.astype(np.float64)
    alive = tau > 0
    log_tau = np.log(np.where(alive, tau, 1.0))
    A = scale / np.sqrt(v)
    rows = np.stack([-0.5 * s * (1 / v - 1 / v0) / np.log(2), s * delta / v / np.log(2), A, bias - A * delta], axis=1)
    k = (log_tau - 0.5 * s * (delta**2 / v + np.log(v / v0)).sum(1)) / np.log(2)
    rows[~alive], k[~alive] = 0.0, -np.inf
    return np.concatenate([m0, rows.ravel(), k]).astype(np.float32)


class PackTablesPass(ir.passes.InPlacePass):
    """Rewrite every node as ``cbn::<plugin>(X, [residual], tables)``, attribute ``components``; drop the bodies.

    What comes out is for TensorRT's parser alone: without its function a node that no plugin takes is an error, so an
    engine cannot end up with the portable body unnoticed.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the nodes, remove the tables that nothing reads any more."""
        sites = find_sites(model)
        ops = cbn_nodes(model)
        for op, site in zip(ops, sites, strict=True):
            _replace(model.graph, op, packed_tables(site.tables), components=len(site.tables.tau))
        for identifier in [identifier for identifier in model.functions if identifier[0] == DOMAIN]:
            del model.functions[identifier]
        common_passes.RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, bool(ops))

    def ensures(self, model: ir.Model) -> None:
        """No node of the op itself is left."""
        names = {plugin_name(form, with_posterior=flag) for form in FORMS.values() for flag in (False, True)}
        for node in model.graph:
            if node.domain == DOMAIN and (node.op_type not in names or COMPONENTS not in node.attributes):
                raise ir.passes.PostconditionError(f"{node.name} was not rewritten for the plugin")


def _replace(graph: ir.Graph, op: OpNode, tables: NDArray[np.float32], components: int) -> None:
    node = op.node
    constant = ir.Value(name=f"{node.name}.tables", const_value=ir.Tensor(tables))
    constant.shape, constant.dtype = ir.Shape(tables.shape), ir.DataType.FLOAT
    graph.register_initializer(constant)
    data = [op.inputs[name] for name in op.form.inputs if name in ("X", "residual")]
    plugin = ir.Node(
        DOMAIN,
        plugin_name(op.form, with_posterior=op.has_posterior),
        [*data, constant],
        ir.convenience.convert_attributes({COMPONENTS: components, **PLUGIN_ATTRIBUTES}),
        num_outputs=len(node.outputs),
        name=node.name,
    )
    ir.convenience.replace_nodes_and_values(graph, node, [node], [plugin], node.outputs, plugin.outputs)
