"""A bfloat16 file: what it holds, that its emulation is its graph and rounds exactly, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.reference
import pytest
import torch
from torch import nn

from cbn_deploy.checkpoint import load_checkpoint, save_checkpoint
from cbn_deploy.data import evaluation_batches, load_digits_lt
from cbn_deploy.errors import ModelFileError, ParityError
from cbn_deploy.native_library import native_library
from cbn_deploy.runtime.factory import open_session
from export import ExportOptions, ExportResult, export_checkpoint
from export.op import DOMAIN
from export.precision.emulation import emulate
from export.precision.same_graph import check_types, require_same_graph
from export.sessions import ort_session
from tests.export.command import cbn_export
from tests.export.conftest import FEW
from tests.export.precision.conftest import DIGITS, MAX_DROP, PREPROCESSING

FLOAT, BFLOAT16 = onnx.TensorProto.FLOAT, onnx.TensorProto.BFLOAT16
BF16 = ExportOptions(precision="bf16", data=DIGITS, inputs=FEW, max_drop=MAX_DROP)


@pytest.fixture(scope="module")
def bf16(trained_path: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportResult:
    return export_checkpoint(trained_path, tmp_path_factory.mktemp("bf16") / "model.onnx", BF16)


@pytest.fixture(scope="module")
def bf16_proto(bf16: ExportResult) -> onnx.ModelProto:
    return onnx.load(bf16.path)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    (images, _), *_ = evaluation_batches(load_digits_lt().test, PREPROCESSING, 16)
    return images.numpy()


def rounded_by_torch(values: np.ndarray) -> np.ndarray:
    return torch.from_numpy(values).to(torch.bfloat16).to(torch.float32).numpy()


def test_weights_are_bfloat16_and_tables_float32(bf16_proto: onnx.ModelProto, trained_model: nn.Module) -> None:
    tables = {name for node in bf16_proto.graph.node if node.domain == DOMAIN for name in node.input[-5:]}
    types = {tensor.name: tensor.data_type for tensor in bf16_proto.graph.initializer}
    assert {types[name] for name in tables} == {FLOAT}
    others = {types[name] for name in types.keys() - tables}
    assert BFLOAT16 in others
    assert FLOAT not in others
    (weight,) = [t for t in bf16_proto.graph.initializer if t.name.startswith("layer1.0.conv1.weight")]
    exact = trained_model.get_submodule("layer1.0.conv1").weight.detach().numpy()
    found = onnx.numpy_helper.to_array(weight).astype(np.float32)
    np.testing.assert_array_equal(found, rounded_by_torch(exact))
    for value in (*bf16_proto.graph.input, *bf16_proto.graph.output):
        assert value.type.tensor_type.elem_type == FLOAT


def test_everything_between_the_ends_is_bfloat16(bf16_proto: onnx.ModelProto) -> None:
    inferred = onnx.shape_inference.infer_shapes(bf16_proto, check_type=True, strict_mode=True)
    types = {value.name: value.type.tensor_type.elem_type for value in inferred.graph.value_info}
    floats = [name for node in bf16_proto.graph.node for name in node.output if types.get(name) == FLOAT]
    assert floats == []
    convolutions = [node for node in bf16_proto.graph.node if node.op_type == "Conv"]
    assert {types[node.output[0]] for node in convolutions} == {BFLOAT16}
    assert len(convolutions) == 19
    for node in bf16_proto.graph.node:
        if node.domain == DOMAIN:
            assert types[node.input[0]] == types[node.output[0]] == BFLOAT16


def test_the_report_says_that_an_emulation_was_judged(bf16: ExportResult, bf16_proto: onnx.ModelProto) -> None:
    report = json.loads(json.dumps(bf16.description.parity))
    assert bf16.description.precision == report["precision"] == "bf16"
    assert "every bfloat16 tensor rounded" in report["emulation"]["arithmetic"]
    outputs = {name for node in bf16_proto.graph.node for name in node.output} - {"logits"}
    assert report["emulation"]["rounded"] == len(outputs)
    assert len(bf16.parity.ops) == 19
    assert all(0 < op.of_limit <= 1 for op in bf16.parity.ops)
    assert bf16.parity.accuracy.rows[0].float32 > 0.3


def tapped(file: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    """The emulation that also returns every tensor that it rounds, before and after."""
    emulation = emulate(file)
    names = [node.output[0] for node in emulation.graph.node if node.name.startswith("widen.")]
    for name in names:
        for output in (f"{name}.exact", name):
            emulation.graph.output.append(onnx.helper.make_tensor_value_info(output, FLOAT, None))
    return emulation, names


@pytest.mark.parametrize("native", [False, True])
def test_the_emulation_rounds_as_torch_does(bf16_proto: onnx.ModelProto, images: np.ndarray, native: bool) -> None:
    library = native_library() if native else None
    if native and library is None:
        pytest.skip("the native library is not installed")
    model, names = tapped(bf16_proto)
    session = ort_session(model, library)
    outputs = [output.name for output in session.get_outputs()]
    values = dict(zip(outputs, session.run(outputs, {"images": images}), strict=True))
    inexact = 0
    for name in names:
        expected = rounded_by_torch(values[f"{name}.exact"])
        np.testing.assert_array_equal(values[name].view(np.uint32), expected.view(np.uint32), err_msg=name)
        inexact += int((values[f"{name}.exact"] != expected).any())
    assert inexact > 40  # it is not that there was nothing to round
    # No optimiser takes the rounding out when nobody looks at it.
    (logits,) = ort_session(emulate(bf16_proto), library).run(["logits"], {"images": images})
    np.testing.assert_array_equal(logits, values["logits"])


def test_onnxruntime_rounds_every_number_as_torch_does() -> None:
    nodes = "b = Cast <to: int = 16> (x) y = Cast <to: int = 1> (b)"
    model = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["": 22]> g (float[n] x) => (float[n] y) {{{nodes}}}'
    )
    upper = np.arange(2**16, dtype=np.uint32) << 16
    lower = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)  # below, at and above the tie
    x = (upper[:, None] | lower).ravel().view(np.float32)
    (y,) = ort_session(model).run(None, {"x": x})
    numbers = ~np.isnan(x)
    np.testing.assert_array_equal(y[numbers].view(np.uint32), rounded_by_torch(x)[numbers].view(np.uint32))
    assert np.isnan(y[~numbers]).all()


def test_the_file_itself_in_the_reference_implementation(bf16_proto: onnx.ModelProto, images: np.ndarray) -> None:
    """ONNX's own evaluator has bfloat16 tensors; sums are bfloat16 there, so that it rounds more than a GPU."""
    (found,) = onnx.reference.ReferenceEvaluator(bf16_proto).run(None, {"images": images[:2]})
    (expected,) = ort_session(emulate(bf16_proto)).run(["logits"], {"images": images[:2]})
    assert found.dtype == np.float32
    step = 2.0**-7 * np.abs(expected).max()
    assert np.abs(found - expected).max() <= 4 * step


def test_a_network_that_bfloat16_destroys_is_refused(trained_path: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(trained_path)
    # Steps of 64 at 10 000 against differences of 10: all classes become one number.
    bias = checkpoint.state_dict["fc.bias"] + 1e4
    spoilt = dataclasses.replace(checkpoint, state_dict={**checkpoint.state_dict, "fc.bias": bias})
    folder = tmp_path / "out"
    folder.mkdir()
    save_checkpoint(tmp_path / "model.pt", spoilt)
    with pytest.raises(ParityError, match=r"bf16 file loses \d+\.\d+ points .*nothing was written.*--precision fp16"):
        export_checkpoint(tmp_path / "model.pt", folder / "model.onnx", BF16)
    assert list(folder.iterdir()) == []


def first(model: onnx.ModelProto, op_type: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.op_type == op_type)


def leave_out_a_rounding(model: onnx.ModelProto) -> None:
    index = next(i for i, node in enumerate(model.graph.node) if node.name.startswith("round."))
    name = model.graph.node[index + 1].output[0]
    del model.graph.node[index : index + 2]
    model.graph.node[index - 1].output[0] = name


def round_to_float16(model: onnx.ModelProto) -> None:
    node = next(node for node in model.graph.node if node.name.startswith("round."))
    node.attribute[0].i = onnx.TensorProto.FLOAT16


def round_the_tables_too(model: onnx.ModelProto) -> None:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("bn1.mean"))
    rounded = rounded_by_torch(onnx.numpy_helper.to_array(tensor).copy())
    tensor.CopyFrom(onnx.numpy_helper.from_array(rounded, tensor.name))


def use_another_weight(model: onnx.ModelProto) -> None:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name.startswith("layer1.0.conv1.weight"))
    array = onnx.numpy_helper.to_array(tensor).copy()
    array[0, 0, 0, 0] = np.nextafter(array[0, 0, 0, 0], np.float32(np.inf))
    tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))


def change_an_attribute(model: onnx.ModelProto) -> None:
    next(a for a in first(model, "CompoundBatchNormalizationRelu").attribute if a.name == "epsilon").f = 1e-3


def read_another_tensor(model: onnx.ModelProto) -> None:
    node = first(model, "CompoundBatchNormalizationAddRelu")
    node.input[0], node.input[1] = node.input[1], node.input[0]


def change_the_body(model: onnx.ModelProto) -> None:
    first_relu = next(node for node in model.functions[0].node if node.op_type == "Exp")
    first_relu.op_type = "Sigmoid"


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (leave_out_a_rounding, "rounded tensors"),
        (round_to_float16, "nodes"),
        (round_the_tables_too, "weights"),
        (use_another_weight, "weights"),
        (change_an_attribute, "nodes"),
        (read_another_tensor, "nodes"),
        (change_the_body, "functions"),
    ],
)
def test_an_emulation_of_something_else_is_found_out(
    bf16_proto: onnx.ModelProto, change: Callable[[onnx.ModelProto], None], what: str
) -> None:
    emulation = emulate(bf16_proto)
    assert require_same_graph(bf16_proto, emulation) > 40
    change(emulation)
    with pytest.raises(ParityError, match=rf"emulation that judges it differ in their .*{what}.*nothing was written"):
        require_same_graph(bf16_proto, emulation)


def test_types_that_onnx_does_not_allow_are_found_out(bf16_proto: onnx.ModelProto) -> None:
    check_types(bf16_proto)
    old = onnx.ModelProto()
    old.CopyFrom(bf16_proto)
    for opsets in (old.opset_import, *(function.opset_import for function in old.functions)):
        next(entry for entry in opsets if entry.domain == "").version = 18
    with pytest.raises(ParityError, match=r"not valid ONNX \(.*Conv.* unsupported type: tensor\(bfloat16\)"):
        check_types(old)
    mixed = onnx.ModelProto()
    mixed.CopyFrom(bf16_proto)
    weight = next(t for t in mixed.graph.initializer if t.name.startswith("layer1.0.conv1.weight"))
    name = weight.name
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight).astype(np.float32), name))
    with pytest.raises(ParityError, match=r"not valid ONNX \(.*elem type differs"):
        check_types(mixed)


def test_a_flat_file_is_the_same_network(
    trained_path: Path, bf16_proto: onnx.ModelProto, tmp_path: Path, images: np.ndarray
) -> None:
    flat = export_checkpoint(trained_path, tmp_path / "flat.onnx", dataclasses.replace(BF16, inline=True))
    proto = onnx.load(flat.path)
    assert {entry.domain: entry.version for entry in proto.opset_import} == {"": 22}
    assert flat.parity.emulation is not None
    (found,), (expected,) = (
        ort_session(emulate(model)).run(["logits"], {"images": images}) for model in (proto, bf16_proto)
    )
    np.testing.assert_array_equal(found, expected)
    pytest.importorskip("openvino")
    with open_session(flat.path, "openvino", 1) as session:  # reads bfloat16, computes in float32
        assert (session.run(images).logits.argmax(1) == expected.argmax(1)).mean() > 0.8


def test_a_cpu_session_says_what_to_do(bf16: ExportResult) -> None:
    with pytest.raises(ModelFileError, match=r"no bfloat16 convolutions for CPUs; build an engine .*--target tensorrt"):
        open_session(bf16.path, "onnxruntime", 1)


def test_the_command_line(
    trained_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--precision", "bf16", "--data", "digits", "--max-drop", str(MAX_DROP)]
    assert cbn_export(monkeypatch, trained_path, "-o", tmp_path / "model.onnx", *arguments) == 0
    printed = capsys.readouterr().out
    assert "bf16, emulated, against the float32 checkpoint on 400 test images of digits" in printed
    assert "Judged by an emulation, not by running the file" in printed
    assert cbn_export(monkeypatch, trained_path, "-o", tmp_path / "repository", *arguments, "--target", "triton") == 2
    assert "bf16 is for engines" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
