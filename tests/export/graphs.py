"""Small hand-built graphs for the passes' tests, in onnx's text format."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
from numpy.typing import NDArray

from tests.export.op_cases import random_case, run_onnxruntime

CHANNELS, COMPONENTS = 3, 2


def graph(body: str, outputs: str = "float[batch, 3, 4, 4] out", inputs: str = "") -> ir.Model:
    """A model over ``x``, ``r`` (batch, 3, 4, 4) and two layers' tables; ``CBN(x, a)`` in ``body`` is the op.

    ``body`` may use ``{a}`` and ``{b}`` for the tables of the layers ``block.a`` and ``block.b``.
    """
    tables = {
        layer: ", ".join(f"block_{layer}_{name}" for name in ("tau", "mean", "var", "scale", "bias")) for layer in "ab"
    }
    text = (
        '<ir_version: 9, opset_import: ["" : 18, "cbn" : 1]>\n'
        f"test (float[batch, 3, 4, 4] x, float[batch, 3, 4, 4] r{inputs}) => ({outputs})\n{{\n"
        + body.format(**tables)
        + "\n}"
    )
    proto = onnx.parser.parse_model(text)
    # The text format's names have no dots, a network's layers do.
    for node in proto.graph.node:
        node.input[:] = [".".join(name.split("_")) if name.startswith("block_") else name for name in node.input]
    for seed, layer in enumerate("ab"):
        case = random_case(seed, 1, CHANNELS, COMPONENTS, (1,), 0.0, alike=False)
        for name, table in case.tables.items():
            proto.graph.initializer.append(onnx.numpy_helper.from_array(table, f"block.{layer}.{name}"))
    return ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(_with_shapes(proto)))


def _with_shapes(proto: onnx.ModelProto) -> onnx.ModelProto:
    # The op has no registered shape inference; its result is shaped like X.
    for node in proto.graph.node:
        if node.domain == "cbn":
            value = onnx.helper.make_tensor_value_info(
                node.output[0], onnx.TensorProto.FLOAT, ["batch", CHANNELS, 4, 4]
            )
            if node.output[0] not in {output.name for output in proto.graph.output}:
                proto.graph.value_info.append(value)
    return proto


def op_types(model: ir.Model) -> list[str]:
    """Of the graph's nodes, in order."""
    return [node.op_type for node in model.graph]


def run(model: ir.Model, seed: int = 0) -> list[NDArray[np.float32]]:
    """The model's answers to a fixed random input."""
    rng = np.random.default_rng(seed)
    feeds = {
        str(value.name): rng.normal(
            size=[2 if dim == "batch" else int(str(dim)) for dim in map(str, value.shape)]
        ).astype(np.float32)
        for value in model.graph.inputs
        if value.shape is not None
    }
    return run_onnxruntime(ir.serde.serialize_model(model), feeds)
