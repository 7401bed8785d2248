"""Small real ONNX files whose right answers are known by hand: they name the colour that an image has most of."""

from __future__ import annotations

import functools
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from cbn_deploy.runtime.description import ModelDescription, Preprocessing

COLOURS = ("red", "green", "blue")
SIZE = 8
SHARPNESS = 10.0
DOMAIN = "test.colours"


def describe(**changes: object) -> ModelDescription:
    """What the colour model says about itself: red has many training images, green a medium number, blue few."""
    fields: dict[str, object] = {
        "class_names": COLOURS,
        "class_counts": (150, 40, 10),
        "preprocessing": Preprocessing(height=SIZE, width=SIZE),
        "architecture": "colours",
        "components": 3,
        "training_prior": (0.75, 0.2, 0.05),
        "source_sha256": "0" * 64,
    }
    return ModelDescription(**{**fields, **changes})  # type: ignore[arg-type]


def colour_model(
    *,
    description: ModelDescription | None = None,
    batch: str | int = "batch",
    size: int = SIZE,
    classes: int = len(COLOURS),
    input_name: str = "images",
    with_posterior: bool = False,
    broken_weight: float = 1.0,
    spin: int = 0,
    blind_above: float | None = None,
) -> onnx.ModelProto:
    """logits = 10 * mean colour (B, 3), through a model-local function; posterior = softmax over the colours.

    ``spin`` matrix products in a loop make each run slow without changing its answer. An image whose mean over all
    colours is above ``blind_above`` has the logits NaN, as one that overflows in a lower precision may.
    """
    weight = np.eye(3, classes, dtype=np.float32) * SHARPNESS * broken_weight
    nodes = [
        helper.make_node("MeanColour", [input_name], ["mean"], domain=DOMAIN),
        helper.make_node("MatMul", ["mean", "weight"], ["logits" if not spin and blind_above is None else "answer"]),
    ]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, classes])]
    initializers = [numpy_helper.from_array(weight, "weight")]
    if with_posterior:
        nodes.append(helper.make_node("Softmax", [input_name], ["posterior.stem"], axis=1))
        outputs.append(helper.make_tensor_value_info("posterior.stem", TensorProto.FLOAT, [batch, 3, size, size]))
    if spin:
        nodes += _spin_nodes(spin)
        initializers += _spin_initializers(spin)
    elif blind_above is not None:
        nodes += _blind_nodes()
        initializers += _blind_initializers(blind_above)
    images = helper.make_tensor_value_info(input_name, TensorProto.FLOAT, [batch, 3, size, size])
    graph = helper.make_graph(nodes, "colours", [images], outputs, initializers)
    model = helper.make_model(
        graph,
        functions=[_mean_colour()],
        opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, 1)],
        ir_version=9,
    )
    helper.set_model_props(model, (description or describe()).to_metadata())
    return model


@functools.cache
def spin_for(seconds: float) -> int:
    """The ``spin`` that makes one run take at least about ``seconds`` on this machine, on one thread."""
    probe, options = 100, onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(colour_model(spin=probe).SerializeToString(), options)
    images = {"images": np.zeros((1, 3, SIZE, SIZE), np.float32)}
    times = []
    for _ in range(7):
        begin = time.perf_counter()
        session.run(None, images)
        times.append(time.perf_counter() - begin)
    # The fastest: what else the machine does now it may not do when the model runs.
    return max(probe, round(probe * seconds / min(times)))


def write_colour_model(path: Path, model: onnx.ModelProto | None = None) -> Path:
    path.write_bytes((model or colour_model()).SerializeToString())
    return path


def _mean_colour() -> onnx.FunctionProto:
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["y"]),
    ]
    return helper.make_function(DOMAIN, "MeanColour", ["x"], ["y"], nodes, [helper.make_opsetid("", 18)])


def _blind_nodes() -> list[onnx.NodeProto]:
    """The root of a negative number is NaN, and NaN times zero too."""
    return [
        helper.make_node("ReduceMean", ["mean", "colour_axis"], ["brightness"], keepdims=1),
        helper.make_node("Sub", ["limit", "brightness"], ["left"]),
        helper.make_node("Sqrt", ["left"], ["root"]),
        helper.make_node("Mul", ["root", "zero"], ["nothing"]),
        helper.make_node("Add", ["answer", "nothing"], ["logits"]),
    ]


def _blind_initializers(limit: float) -> list[onnx.TensorProto]:
    return [
        numpy_helper.from_array(np.array(limit, dtype=np.float32), "limit"),
        numpy_helper.from_array(np.array(0.0, dtype=np.float32), "zero"),
        numpy_helper.from_array(np.array([1], dtype=np.int64), "colour_axis"),
    ]


def _spin_nodes(spin: int) -> list[onnx.NodeProto]:
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["state_in", "rotation"], ["state_out"]),
            helper.make_node("Identity", ["go_in"], ["go_out"]),
        ],
        "body",
        [
            value("step", TensorProto.INT64, []),
            value("go_in", TensorProto.BOOL, []),
            value("state_in", TensorProto.FLOAT, [256, 256]),
        ],
        [value("go_out", TensorProto.BOOL, []), value("state_out", TensorProto.FLOAT, [256, 256])],
    )
    return [
        helper.make_node("Loop", ["spin", "go", "rotation"], ["spun"], body=body),
        helper.make_node("ReduceSum", ["spun"], ["sum"], keepdims=0),
        helper.make_node("Mul", ["sum", "zero"], ["nothing"]),
        helper.make_node("Add", ["answer", "nothing"], ["logits"]),
    ]


def _spin_initializers(spin: int) -> list[onnx.TensorProto]:
    rotation = np.roll(np.eye(256, dtype=np.float32), 1, axis=0)  # a permutation: products neither grow nor vanish
    return [
        numpy_helper.from_array(np.array(spin, dtype=np.int64), "spin"),
        numpy_helper.from_array(np.array(True), "go"),
        numpy_helper.from_array(rotation, "rotation"),
        numpy_helper.from_array(np.array(0.0, dtype=np.float32), "zero"),
    ]
