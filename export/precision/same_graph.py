"""Proof that a bfloat16 file and the emulation that judged it are one graph but for types, all legal.

Shares no code with what makes the emulation: it takes the rounding out again and compares what is left.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx
import onnx.inliner
from onnx import ModelProto, NodeProto, TensorProto

from cbn_deploy.errors import ParityError

__all__ = ["check_types", "require_same_graph"]

_FLOAT, _BFLOAT16 = TensorProto.FLOAT, TensorProto.BFLOAT16


def require_same_graph(file: ModelProto, emulation: ModelProto) -> int:
    """Compare the two; how many tensors the emulation rounds.

    Equal are nodes (order, names, inputs, outputs, attributes but the type of a Cast), functions, opsets, inputs,
    outputs, the weights' numbers; and the emulation rounds those values that the file has in bfloat16, and no other.

    Args:
        file: what is to be written.
        emulation: what the gates ran.

    Raises:
        ParityError: they differ.
    """
    unrounded, rounded, helpers = _without_rounding(emulation)
    types, emulated = _types(file), _types(emulation)
    expected = {name for name, element in types.items() if element == _BFLOAT16}
    pairs = {
        "nodes": (unrounded, [_widened(node) for node in file.graph.node]),
        "rounded tensors": (rounded, expected),
        "types": (
            {name: element for name, element in emulated.items() if name not in helpers},
            {name: _FLOAT if element == _BFLOAT16 else element for name, element in types.items()},
        ),
        "weights": (_numbers(emulation.graph.initializer), _numbers(file.graph.initializer)),
        "inputs": (list(emulation.graph.input), list(file.graph.input)),
        "outputs": (list(emulation.graph.output), list(file.graph.output)),
        "functions": (list(emulation.functions), list(file.functions)),
        "opsets": (list(emulation.opset_import), list(file.opset_import)),
    }
    different = [what for what, (found, wanted) in pairs.items() if found != wanted]
    if different:
        raise _differ(" and ".join(different))
    return len(rounded)


def check_types(file: ModelProto) -> None:
    """Every tensor has a type that its operators have at the file's opset, bodies of functions included.

    Raises:
        ParityError: one has not, or the file is wrong in another way that ONNX's checker sees.
    """
    try:
        onnx.checker.check_model(file, full_check=True)
        _types(onnx.inliner.inline_local_functions(file))
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        reason = " ".join(str(error).split())
        raise ParityError(
            f"The bfloat16 file is not valid ONNX ({reason}), so nothing was written; report it."
        ) from error


def _differ(what: str) -> ParityError:
    return ParityError(
        f"The bfloat16 file and the emulation that judges it differ in their {what}, so nothing was written; report it."
    )


def _types(model: ModelProto) -> dict[str, int]:
    """Value -> element type, of everything but the weights."""
    graph = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    weights = {tensor.name for tensor in graph.initializer}
    values = (*graph.input, *graph.value_info, *graph.output)
    return {value.name: value.type.tensor_type.elem_type for value in values if value.name not in weights}


def _numbers(weights: Iterable[TensorProto]) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Name -> type, shape and bits; of bfloat16 those of the same numbers in float32."""
    numbers = {}
    for tensor in weights:
        array = onnx.numpy_helper.to_array(tensor)
        if tensor.data_type == _BFLOAT16:
            array = array.astype("float32")
        numbers[tensor.name] = str(array.dtype), array.shape, array.tobytes()
    return numbers


def _without_rounding(emulation: ModelProto) -> tuple[list[NodeProto], set[str], set[str]]:
    """Its nodes without the pairs of casts, the values that pairs wrote, and those that only pairs read."""
    nodes = list(emulation.graph.node)
    readers: dict[str, list[int]] = {}
    for index, node in enumerate(nodes):
        for name in node.input:
            readers.setdefault(name, []).append(index)
    written = {name for node in nodes for name in node.output} - {value.name for value in emulation.graph.output}
    renamed: dict[str, str] = {}
    removed, helpers = set(), set()
    for index, node in enumerate(nodes):
        if _cast_to(node) != _BFLOAT16:
            continue
        exact, narrow = node.input[0], node.output[0]
        (second, *others) = readers.get(narrow, [index])
        if others or _cast_to(nodes[second]) != _FLOAT or readers[exact] != [index] or not {exact, narrow} <= written:
            raise _differ("rounding")
        renamed[exact] = nodes[second].output[0]
        removed |= {index, second}
        helpers |= {exact, narrow}
    kept = [_with_outputs(node, renamed) for index, node in enumerate(nodes) if index not in removed]
    return kept, set(renamed.values()), helpers


def _with_outputs(node: NodeProto, renamed: dict[str, str]) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    copy.output[:] = [renamed.get(name, name) for name in node.output]
    return copy


def _widened(node: NodeProto) -> NodeProto:
    """The node, to float32 where it is a Cast to bfloat16."""
    copy = NodeProto()
    copy.CopyFrom(node)
    if _cast_to(node) == _BFLOAT16:
        next(attribute for attribute in copy.attribute if attribute.name == "to").i = _FLOAT
    return copy


def _cast_to(node: NodeProto) -> int | None:
    if (node.domain, node.op_type) != ("", "Cast"):
        return None
    return next(int(attribute.i) for attribute in node.attribute if attribute.name == "to")
