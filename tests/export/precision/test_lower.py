"""The whole way: what is refused and leaves nothing, what is written and says so, who can read it."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from cbn_deploy.checkpoint import load_checkpoint, load_model
from cbn_deploy.data import evaluation_batches, load_digits_lt
from cbn_deploy.errors import DataError, ParityError
from cbn_deploy.runtime.description import ModelDescription
from cbn_deploy.runtime.factory import open_session
from cbn_deploy.training import evaluate_predictions
from cbn_deploy.training.predictions import predict
from export import ExportOptions, ExportResult, export_checkpoint
from export.precision import DEFAULT_MAX_DROP
from export.render import accuracy_table, precision_ops_table
from tests.export.command import cbn_export
from tests.export.conftest import FEW
from tests.export.precision.conftest import DIGITS, MAX_DROP, PREPROCESSING, make_trained_checkpoint

INT8 = ExportOptions(precision="int8", data=DIGITS, inputs=FEW, max_drop=MAX_DROP)


@pytest.fixture(scope="module")
def fog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image of nothing but the preprocessing's mean: ranges calibrated on it cut every pixel to about 0."""
    folder = tmp_path_factory.mktemp("fog")
    grey = round(255 * PREPROCESSING.mean[0])
    Image.new("RGB", (20, 20), (grey,) * 3).save(folder / "fog.png")
    return folder


def test_a_destroyed_model_is_refused_and_nothing_is_written(trained_path: Path, fog: Path, tmp_path: Path) -> None:
    output = tmp_path / "model.onnx"
    with pytest.raises(ParityError, match=r"int8 file loses \d+\.\d+ points .* 0\.5 is allowed.*nothing was written"):
        export_checkpoint(trained_path, output, dataclasses.replace(INT8, calibration=fog, max_drop=DEFAULT_MAX_DROP))
    assert list(tmp_path.iterdir()) == []


def test_a_larger_drop_can_be_accepted(trained_path: Path, fog: Path, tmp_path: Path) -> None:
    output = tmp_path / "model.onnx"
    result = export_checkpoint(trained_path, output, dataclasses.replace(INT8, calibration=fog, max_drop=100.0))
    assert output.is_file()
    assert result.parity.accuracy.drop > 10
    assert result.description.parity["accuracy"]["max_drop"] == 100
    assert result.parity.calibration.source == f"images of {fog.name}"


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_the_figures_are_those_of_cbn_eval(precision: str, request: pytest.FixtureRequest, trained_path: Path) -> None:
    result: ExportResult = request.getfixturevalue(precision)
    checkpoint = load_checkpoint(trained_path)
    test, preprocessing = load_digits_lt().test, checkpoint.description.preprocessing
    batches = list(evaluation_batches(test, preprocessing, 40))
    float32, labels = predict(load_model(checkpoint), batches, torch.device("cpu"))
    with open_session(result.path, threads=1) as session:
        lowered = np.concatenate([session.run(images.numpy()).logits for images, _ in batches])
    before = evaluate_predictions(float32, labels, checkpoint.description.class_counts)
    after = evaluate_predictions(lowered, labels, checkpoint.description.class_counts)
    rows = {row.group: row for row in result.parity.accuracy.rows}
    assert rows["all classes"].float32 == pytest.approx(before.top1)
    assert rows["all classes"].lowered == pytest.approx(after.top1)
    assert rows["all classes"].agreement == pytest.approx((float32.argmax(1) == lowered.argmax(1)).mean())
    for group in ("many", "medium", "few"):
        assert rows[group].float32 == pytest.approx(getattr(before, group))
        assert rows[group].lowered == pytest.approx(getattr(after, group))
    assert before.top1 > 0.3  # a network that knows something (guessing is 0.1), however well it was trained
    assert result.parity.accuracy.drop <= MAX_DROP


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_the_file_says_what_it_is(precision: str, request: pytest.FixtureRequest) -> None:
    result: ExportResult = request.getfixturevalue(precision)
    proto = onnx.load(result.path)
    description = ModelDescription.from_metadata({entry.key: entry.value for entry in proto.metadata_props})
    assert description.precision == precision
    assert description == result.description
    report = json.loads(json.dumps(description.parity))
    assert report["precision"] == precision
    assert [row["group"] for row in report["accuracy"]["rows"]] == ["all classes", "many", "medium", "few"]
    if precision == "int8":
        assert report["calibration"]["images"] == 438
        assert report["calibration"]["source"] == "training images of digits-lt"
        assert len(report["calibration"]["sha256"]) == 64
    else:
        assert report["calibration"] is None


def test_a_checkpoint_is_float32(trained_path: Path) -> None:
    assert load_checkpoint(trained_path).description.precision == "fp32"


def test_batch_norm_is_folded_before_it_is_quantized(tmp_path: Path) -> None:
    make_trained_checkpoint(tmp_path / "twin.pt", "resnet20-bn", epochs=0.1)
    result = export_checkpoint(tmp_path / "twin.pt", tmp_path / "twin.onnx", dataclasses.replace(INT8, max_drop=100.0))
    proto = onnx.load(result.path)
    types = [node.op_type for node in proto.graph.node]
    assert "BatchNormalization" not in types
    assert types.count("Conv") == 19
    assert result.parity.ops == ()
    model = load_model(load_checkpoint(tmp_path / "twin.pt"))
    norm, conv = model.get_submodule("layer1.0.bn1"), model.get_submodule("layer1.0.conv1")
    gain = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach().numpy()
    exact = conv.weight.detach().numpy() * gain[:, None, None, None]
    scales = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer if t.name.endswith("_scale")}
    np.testing.assert_allclose(scales["layer1.0.conv1.weight_scale"], np.abs(exact).max((1, 2, 3)) / 64, rtol=1e-5)


def test_a_flat_int8_file_runs_elsewhere(trained_path: Path, int8: ExportResult, tmp_path: Path) -> None:
    flat = export_checkpoint(trained_path, tmp_path / "flat.onnx", dataclasses.replace(INT8, inline=True))
    assert {entry.domain for entry in onnx.load(flat.path).opset_import} == {""}
    assert flat.parity.kernel_path == "portable"
    pytest.importorskip("openvino")
    (images, _), *_ = evaluation_batches(load_digits_lt().test, flat.description.preprocessing, 64)
    with open_session(flat.path, "openvino", 1) as session, open_session(int8.path, threads=1) as reference:
        same = session.run(images.numpy()).logits.argmax(1) == reference.run(images.numpy()).logits.argmax(1)
    assert same.mean() > 0.9


def test_labelled_test_images_are_asked_for(trained_path: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="say where they are with --data"):
        export_checkpoint(trained_path, tmp_path / "model.onnx", dataclasses.replace(INT8, data=None))


def test_the_command_line(
    trained_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "int8.onnx"
    arguments = ["--precision", "int8", "--data", "digits", "--max-drop", str(MAX_DROP)]
    assert cbn_export(monkeypatch, trained_path, "-o", output, *arguments) == 0
    printed = capsys.readouterr().out
    assert "Calibrated on 438 training images of digits-lt." in printed
    assert "int8 against the float32 checkpoint on 400 test images of digits" in printed
    for group in ("all classes", "many", "medium", "few"):
        assert group in printed
    assert [path.name for path in tmp_path.iterdir()] == ["int8.onnx"]


def test_what_may_be_training_images_is_said(
    trained_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder without a word for what it is, with the images of the training and one more."""
    data = load_digits_lt()
    for index, label in enumerate(data.train.labels):
        folder = tmp_path / "photos" / data.class_names[label]
        folder.mkdir(parents=True, exist_ok=True)
        data.train.image(index).save(folder / f"{index}.png")
    shutil.copy(next(folder.iterdir()), folder / "added.png")
    output = tmp_path / "fp16.onnx"
    arguments = ["--precision", "fp16", "--data", str(tmp_path / "photos"), "--max-drop", str(MAX_DROP)]
    assert cbn_export(monkeypatch, trained_path, "-o", output, *arguments) == 0
    assert "as many images as the model was trained on" in " ".join(capsys.readouterr().out.split())
    description = ModelDescription.from_metadata({e.key: e.value for e in onnx.load(output).metadata_props})
    assert "as many images as the model was trained on" in description.parity["test_set_doubt"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--precision", "int8"], "--data"),
        (["--precision", "int8", "--data", "{tmp}/none"], "does not exist"),
        (["--precision", "int8", "--data", "digits", "--calibration", "{tmp}/none"], "not a folder"),
        (["--precision", "int8", "--data", "digits", "--calibration", "{tmp}"], "holds no"),
        (["--calibration", "{tmp}"], "--calibration goes with --precision int8"),
        (["--max-drop", "1"], "--max-drop goes with a lower --precision"),
        (["--precision", "int8", "--data", "digits", "--max-drop", "-1"], "--max-drop"),
        (["--precision", "int8", "--target", "tensorrt-rtx"], "--precision fp16"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    arguments: list[str],
    sentence: str,
    trained_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    filled = [argument.format(tmp=tmp_path) for argument in arguments]
    assert cbn_export(monkeypatch, trained_path, "-o", tmp_path / "model.onnx", *filled) == 2
    captured = capsys.readouterr()
    assert sentence in captured.err
    assert "Traceback" not in captured.err
    assert list(tmp_path.iterdir()) == []


def test_tables_have_a_row_for_everything(int8: ExportResult) -> None:
    assert accuracy_table(int8.parity).row_count == 4
    assert precision_ops_table(int8.parity).row_count == 19
