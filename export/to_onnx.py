"""A frozen torch model as ONNX: trace, name, optimise, fuse, attach the op's bodies."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common_passes
import onnxscript
import onnxscript.optimizer
import torch
from torch import Tensor, nn

import cbn_deploy.kernels  # noqa: F401 - registers torch.ops.cbn
from cbn_deploy.runtime.signature import INPUT, LOGITS
from export.function_body import OPSET
from export.op import DOMAIN, PLAIN, VERSION, op_schema
from export.passes import (
    AddPosteriorOutputsPass,
    AttachFunctionsPass,
    FoldLinearAfterPass,
    FoldLinearBeforePass,
    FoldSingleGaussianPass,
    FuseAddReluPass,
    FuseReluPass,
    InlineFunctionsPass,
    NameNodesPass,
    PluginAttributesPass,
)

__all__ = ["IR_VERSION", "build_graph", "inline", "to_onnx"]

# The lowest version whose functions may declare attributes with defaults (onnx 1.14).
IR_VERSION = 9


def to_onnx(
    model: nn.Module, example: Tensor, *, with_posterior: bool = False, inline_functions: bool = False
) -> onnx.ModelProto:
    """Export ``model`` with a dynamic batch.

    Args:
        model: in eval mode, its mixture layers frozen (``cbn_deploy.norm.freeze``); a plain batch-norm model gives a
            file without our op.
        example: images (1, 3, H, W) float32; the height and width become fixed, the batch does not.
        with_posterior: every layer's posterior becomes an output, ``posterior.<layer>``.
        inline_functions: write the op's body in place of its nodes.

    Returns:
        Input ``images`` (batch, 3, H, W), output ``logits`` (batch, K); not yet described or checked for parity.

    Raises:
        ValueError: the model is in training mode.
    """
    graph = build_graph(model, example, with_posterior=with_posterior)
    return ir.serde.serialize_model(inline(graph) if inline_functions else graph)


def build_graph(model: nn.Module, example: Tensor, *, with_posterior: bool = False) -> ir.Model:
    """As :func:`to_onnx`, as an onnx_ir model with the op's nodes and their functions."""
    if model.training:
        raise ValueError("the model is in training mode; freeze it (cbn_deploy.norm.freeze) before exporting")
    graph = _trace(model, example)
    NameNodesPass()(graph)
    onnxscript.optimizer.optimize(graph)
    common_passes.ClearMetadataAndDocStringPass()(graph)
    graph.ir_version = IR_VERSION
    fold = [FoldLinearBeforePass(), FoldLinearAfterPass()]
    # A layer whose posterior is asked for must stay, even one of a single Gaussian.
    single = [] if with_posterior else [FoldSingleGaussianPass()]
    clean = [common_passes.RemoveUnusedNodesPass()]
    fuse = [FuseAddReluPass(), FuseReluPass()]
    posterior = [AddPosteriorOutputsPass()] if with_posterior else []
    passes = [*fold, *single, *clean, *fuse, *posterior, PluginAttributesPass(), AttachFunctionsPass()]
    ir.passes.Sequential(*passes)(graph)
    return graph


def inline(graph: ir.Model) -> ir.Model:
    """A flat copy of ``graph``."""
    flat = graph.clone()
    InlineFunctionsPass()(flat)
    return flat


def _trace(model: nn.Module, example: Tensor) -> ir.Model:
    # torch.export takes a batch of one for a constant, so trace with two.
    images = example[:1].expand(2, *example.shape[1:])
    batch = torch.export.Dim("batch", min=1)
    with _quiet_exporter(), torch.no_grad():
        program = torch.onnx.export(
            model,
            (images,),
            dynamo=True,
            # The optimiser de-duplicates initializers, and nodes take their names from them: it runs after naming.
            optimize=False,
            verbose=False,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[LOGITS],
            dynamic_shapes=({0: batch},),
            custom_translation_table=_translation_table(),
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned nothing although it was called with dynamo=True")
    return program.model


def _translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    domain = onnxscript.values.Opset(DOMAIN, VERSION)
    plain = onnxscript.values.Op(domain, PLAIN.op_type, op_schema(PLAIN, with_posterior=False))
    posterior = onnxscript.values.Op(domain, PLAIN.op_type, op_schema(PLAIN))

    def compound_batch_norm(
        x: Any, tau: Any, mean: Any, var: Any, scale: Any, bias: Any, epsilon: float, density_scale: float
    ) -> Any:
        return plain(x, tau, mean, var, scale, bias, epsilon=epsilon, density_scale=density_scale)

    def compound_batch_norm_posterior(
        x: Any, tau: Any, mean: Any, var: Any, scale: Any, bias: Any, epsilon: float, density_scale: float
    ) -> Any:
        return posterior(x, tau, mean, var, scale, bias, epsilon=epsilon, density_scale=density_scale)

    return {
        torch.ops.cbn.compound_batch_norm.default: compound_batch_norm,
        torch.ops.cbn.compound_batch_norm_posterior.default: compound_batch_norm_posterior,
    }


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keep torch's own deprecations and its log lines about an absent torchvision from our users."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning)
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            yield
    finally:
        logger.setLevel(level)
