"""What an int8 file holds: per-channel 7-bit weights, calibrated ranges, mixture layers that are still exact."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from cbn_deploy.data import load_digits_lt
from cbn_deploy.native_library import native_library
from cbn_deploy.norm import freeze
from cbn_deploy.runtime.preprocessing import normalize, resize
from export import ExportResult, to_onnx
from export.op import DOMAIN, TABLES
from tests.export.precision.conftest import PREPROCESSING
from tests.reference.op_float64 import compound_batch_normalization
from tests.reference.tolerances import TOLERANCES

CONVOLUTIONS = 19


@pytest.fixture(scope="module")
def constants(int8_proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in int8_proto.graph.initializer}


@pytest.fixture(scope="module")
def producers(int8_proto: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {name: node for node in int8_proto.graph.node for name in node.output}


def nodes(proto: onnx.ModelProto, op_type: str) -> list[onnx.NodeProto]:
    return [node for node in proto.graph.node if node.op_type == op_type]


def test_weights_have_one_scale_a_channel_and_seven_bits(
    int8_proto: onnx.ModelProto,
    constants: dict[str, np.ndarray],
    producers: dict[str, onnx.NodeProto],
    trained_model: nn.Module,
) -> None:
    names = {
        name for name, module in trained_model.named_modules() if isinstance(module, nn.Conv2d) and name != "conv1"
    }
    seen = set()
    for node in nodes(int8_proto, "Conv"):
        weight = producers.get(node.input[1])
        if weight is None:
            continue
        assert weight.op_type == "DequantizeLinear"
        quantized, scale, zero_point = (constants[name] for name in weight.input)
        layer = weight.input[0].removesuffix(".weight_quantized")
        exact = trained_model.get_submodule(layer).weight.detach().numpy()
        assert quantized.dtype == np.int8
        assert np.abs(quantized.astype(int)).max() <= 64
        assert scale.shape == (exact.shape[0],)
        assert not zero_point.any()
        np.testing.assert_allclose(scale, np.abs(exact).max((1, 2, 3)) / 64, rtol=1e-6)
        rounded = quantized * scale[:, None, None, None]
        assert (np.abs(rounded - exact) <= 0.5001 * scale[:, None, None, None]).all()
        seen.add(layer)
    assert seen == names
    assert len(seen) == CONVOLUTIONS - 1


def test_images_and_classifier_stay_float32(
    int8_proto: onnx.ModelProto, constants: dict[str, np.ndarray], trained_model: nn.Module
) -> None:
    (first,) = [node for node in nodes(int8_proto, "Conv") if node.input[0] == "images"]
    np.testing.assert_array_equal(constants[first.input[1]], trained_model.conv1.weight.detach().numpy())
    (classifier,) = nodes(int8_proto, "Gemm")
    np.testing.assert_array_equal(constants[classifier.input[1]], trained_model.fc.weight.detach().numpy())
    assert classifier.output[0] == "logits"


def test_tables_and_functions_are_those_of_the_float32_file(
    int8_proto: onnx.ModelProto, constants: dict[str, np.ndarray], trained_model: nn.Module
) -> None:
    exact = to_onnx(freeze(trained_model), torch.zeros(1, 3, 16, 16))
    tables = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in exact.graph.initializer}
    ours = {node.name: node for node in exact.graph.node if node.domain == DOMAIN}
    quantized = {node.name: node for node in int8_proto.graph.node if node.domain == DOMAIN}
    assert ours.keys() == quantized.keys()
    for name, node in ours.items():
        assert {a.name for a in node.attribute} == {a.name for a in quantized[name].attribute}
        for before, after in zip(node.input[-5:], quantized[name].input[-5:], strict=True):
            assert constants[after].dtype == np.float32
            np.testing.assert_array_equal(constants[after], tables[before])
    assert {f.name for f in int8_proto.functions} == {f.name for f in exact.functions}
    assert int8_proto.ir_version == exact.ir_version
    assert {e.domain: e.version for e in int8_proto.opset_import} == {e.domain: e.version for e in exact.opset_import}


def test_ranges_are_those_of_the_calibration_images(
    int8_proto: onnx.ModelProto,
    constants: dict[str, np.ndarray],
    producers: dict[str, onnx.NodeProto],
    trained_model: nn.Module,
) -> None:
    training = load_digits_lt().train
    images = normalize(
        np.stack([resize(training.image(i), PREPROCESSING) for i in range(len(training))]), PREPROCESSING
    )
    extremes: dict[str, tuple[float, float]] = {}

    def watch(name: str, tensor: torch.Tensor) -> None:
        low, high = extremes.get(name, (0.0, 0.0))  # zero must be exact: padding
        extremes[name] = min(low, float(tensor.min())), max(high, float(tensor.max()))

    model = copy.deepcopy(trained_model)
    layer = model.get_submodule("layer2.1.conv2")
    layer.register_forward_pre_hook(lambda _module, arguments: watch("in", arguments[0]))
    layer.register_forward_hook(lambda _module, _arguments, y: watch("out", y))
    with torch.inference_mode():
        for batch in torch.from_numpy(images).split(64):
            model(batch)
    (node,) = [n for n in nodes(int8_proto, "Conv") if n.input[1].startswith("layer2.1.conv2")]
    (after,) = [n for n in nodes(int8_proto, "QuantizeLinear") if n.input[0] == node.output[0]]
    for quantizer, (low, high) in ((producers[node.input[0]], extremes["in"]), (after, extremes["out"])):
        scale, zero_point = constants[quantizer.input[1]], constants[quantizer.input[2]]
        assert zero_point.dtype == np.uint8
        assert float(scale) == pytest.approx((high - low) / 255, rel=1e-4)
        assert int(zero_point) == pytest.approx(-low / float(scale), abs=0.51)


def test_onnxruntime_runs_them_on_integers(int8: ExportResult, tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 4
    library = native_library()
    if library is not None:
        options.register_custom_ops_library(str(library.path))
    onnxruntime.InferenceSession(int8.path, options, providers=["CPUExecutionProvider"])
    optimized = onnx.load(tmp_path / "optimized.onnx")
    assert len(nodes(optimized, "QLinearConv")) == CONVOLUTIONS - 1


def test_a_node_in_the_file_is_the_formula_of_what_it_reads(
    int8_proto: onnx.ModelProto, constants: dict[str, np.ndarray]
) -> None:
    (node,) = [node for node in int8_proto.graph.node if node.name == "layer3.1.bn2"]
    tapped = onnx.ModelProto()
    tapped.CopyFrom(int8_proto)
    names = [node.input[0], node.input[1], node.output[0]]
    for name in names:
        tapped.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(tapped.SerializeToString(), providers=["CPUExecutionProvider"])
    test = load_digits_lt().test
    images = normalize(np.stack([resize(test.image(i), PREPROCESSING) for i in range(4)]), PREPROCESSING)
    x, residual, y = session.run(names, {"images": images})
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    tolerance = TOLERANCES["op float32"]
    reference = compound_batch_normalization(
        x.astype(np.float64),
        *(constants[name].astype(np.float64) for name in node.input[-len(TABLES) :]),
        attributes["epsilon"],
        attributes["density_scale"],
        unit=tolerance.rtol,
        residual=residual.astype(np.float64),
        relu=True,
    )
    assert (np.abs(y - reference.y) <= tolerance.rtol * reference.y_condition + tolerance.atol).all()
    assert np.unique(x).size <= 256  # what it reads comes from 8 bits


def test_the_report_has_a_row_for_every_node(int8: ExportResult) -> None:
    assert [op.layer for op in int8.parity.ops][:2] == ["bn1", "layer1.0.bn1"]
    assert len(int8.parity.ops) == CONVOLUTIONS
    assert all(0 < op.of_limit < 1 for op in int8.parity.ops)
