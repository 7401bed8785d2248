"""Batch norm folded into the convolution before it, as every runtime would do it in float32."""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common_passes
from onnxscript.rewriter import RewriteRuleSet
from onnxscript.rewriter.rules.common import fuse_batchnorm_into_conv_rule

__all__ = ["fold_batch_norm"]


def fold_batch_norm(graph: ir.Model) -> ir.Model:
    """A copy of ``graph`` with every Conv -> BatchNormalization as one Conv.

    It has to happen before weights are rounded: ``gamma / sqrt(var + eps)`` belongs to a weight's channel, and its
    scale, not to the activation behind it.
    """
    folded = graph.clone()
    RewriteRuleSet([fuse_batchnorm_into_conv_rule]).apply_to_model(folded)
    common_passes.RemoveUnusedNodesPass()(folded)
    return folded
