"""The kernels that an exported model needs in onnxruntime's CUDA provider, compiled without a GPU.

``python -m cbn_deploy.kernels.triton.model_kernels model.onnx FOLDER`` writes them for servers that have neither torch
nor Triton: ``CBN_CUDA_KERNELS=FOLDER`` on the server.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import onnx
from onnx import NodeProto, TensorProto, TypeProto

from cbn_deploy.kernels.triton.ahead_of_time import (
    CompiledKernel,
    compile_kernel,
    layer_spec,
    named_by_spec,
    write_kernel,
)
from cbn_deploy.kernels.triton.contract import DataType, KernelSpec
from cbn_deploy.op_forms import OP_DOMAIN, OP_FORMS

__all__ = ["LayerShape", "compile_for_model", "model_layers"]

_TYPES: dict[int, DataType] = {
    TensorProto.FLOAT: "float32",
    TensorProto.FLOAT16: "float16",
    TensorProto.BFLOAT16: "bfloat16",
}
_TABLES = 5
_compiled = cache(compile_kernel)


@dataclass(frozen=True, kw_only=True)
class LayerShape:
    """What the kernel of one node depends on.

    Attributes:
        dtype: of X.
        components: M.
        channels: D.
        pixels: product of the spatial axes; ``None`` where the model does not fix them.
        residual: X is followed by a residual.
        relu: the form ends in max(0, .).
        posterior: the node has its second output.
    """

    dtype: DataType
    components: int
    channels: int
    pixels: int | None
    residual: bool
    relu: bool
    posterior: bool

    def specs(self) -> Iterator[KernelSpec]:
        """One kernel cut for many images and one for a single image; one for any size where the size is open."""
        for images in (None,) if self.pixels is None else (None, 1):
            yield layer_spec(
                dtype=self.dtype,
                components=self.components,
                channels=self.channels,
                pixels=self.pixels or 1,
                residual=self.residual,
                relu=self.relu,
                posterior=self.posterior,
                images=images,
            )


def model_layers(content: bytes) -> list[LayerShape]:
    """The shapes of the op's nodes in a serialized ModelProto, each once.

    Raises:
        ValueError: a node's tables are not initializers, or its type cannot be told.
    """
    model = onnx.load_model_from_string(content)
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    types = {value.name: value.type for value in (*graph.input, *graph.value_info, *graph.output)}
    tables = {table.name: tuple(table.dims) for table in graph.initializer}
    nodes = [node for node in graph.node if node.domain == OP_DOMAIN and node.op_type in OP_FORMS]
    return list(dict.fromkeys(_layer(node, types, tables) for node in nodes))


def compile_for_model(content: bytes) -> list[CompiledKernel]:
    """Compile what the nodes of a serialized ModelProto need; Triton keeps results on disk (``TRITON_CACHE_DIR``).

    Raises:
        ValueError: a layer that has no kernel, such as one with more than 16 components.
    """
    specs = dict.fromkeys(spec for layer in model_layers(content) for spec in layer.specs())
    return [named_by_spec(_compiled(spec)) for spec in specs]


def _layer(node: NodeProto, types: dict[str, TypeProto], tables: dict[str, tuple[int, ...]]) -> LayerShape:
    shape = tables.get(node.input[-1], ())
    x = types.get(node.input[0], TypeProto()).tensor_type
    if len(shape) != len(("M", "D")) or any(name not in tables for name in node.input[-_TABLES:]):
        raise ValueError(f"the tables of node {node.name} are not initializers; export the model again")
    if x.elem_type not in _TYPES:
        raise ValueError(f"the type of node {node.name}'s input cannot be told; export the model again")
    sizes = [axis.dim_value for axis in x.shape.dim][2:]
    known = x.HasField("shape") and len(x.shape.dim) > 1 and all(size > 0 for size in sizes)
    residual, relu = OP_FORMS[node.op_type]
    return LayerShape(
        dtype=_TYPES[x.elem_type],
        components=shape[0],
        channels=shape[1],
        pixels=math.prod(sizes) if known else None,
        residual=residual,
        relu=relu,
        posterior=len(node.output) > 1 and bool(node.output[1]),
    )


def main() -> None:
    """Write the PTX that a model needs and its launch contracts."""
    parser = argparse.ArgumentParser(description="Compile the CUDA kernels that a model needs; no GPU is needed.")
    parser.add_argument("model", type=Path, help="model.onnx of cbn-export")
    parser.add_argument("out", type=Path, help="folder to write to")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for kernel in compile_for_model(arguments.model.read_bytes()):
        sys.stdout.write(f"{write_kernel(kernel, arguments.out)}\n")


if __name__ == "__main__":
    main()
