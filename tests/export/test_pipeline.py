"""Checkpoint in, file out: what the file says, and that nothing is left behind when something fails."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import onnx
import pytest
import torch
from PIL import Image

import export.function_body
from cbn_deploy.checkpoint import Checkpoint, file_sha256, load_checkpoint, save_checkpoint
from cbn_deploy.errors import CheckpointError, DataError, OutputError, ParityError
from cbn_deploy.runtime.description import ModelDescription
from export import ExportOptions, ExportResult, export_checkpoint
from tests.export.conftest import FEW

OPTIONS = ExportOptions(inputs=FEW)


def test_the_file_describes_itself(
    exported: ExportResult, exported_proto: onnx.ModelProto, checkpoint_path: Path
) -> None:
    metadata = {entry.key: entry.value for entry in exported_proto.metadata_props}
    description = ModelDescription.from_metadata(metadata)
    source = load_checkpoint(checkpoint_path).description
    assert description.class_names == source.class_names
    assert description.class_counts == source.class_counts
    assert description.preprocessing == source.preprocessing
    assert (description.architecture, description.components) == ("resnet20", 4)
    assert description.source_sha256 == file_sha256(checkpoint_path)
    assert description.parity == exported.parity.to_dict()
    assert description.tool_versions["onnx"] == onnx.__version__
    assert description.tool_versions["torch"] == torch.__version__
    assert exported_proto.producer_name == "cbn-deploy"


def test_the_result_says_what_was_written(exported: ExportResult, exported_proto: onnx.ModelProto) -> None:
    assert exported.size == exported.path.stat().st_size
    assert exported.nodes == len(exported_proto.graph.node)
    assert exported.forms == {"CompoundBatchNormalizationRelu": 10, "CompoundBatchNormalizationAddRelu": 9}
    assert not exported.inlined


def test_the_flat_file(flat: ExportResult) -> None:
    model = onnx.load(flat.path)
    assert {entry.domain for entry in model.opset_import} == {""}
    assert len(model.graph.output) == 20
    assert flat.inlined
    assert len(flat.parity.ops) == 19


def altered(checkpoint_path: Path, target: Path, **changes: object) -> Path:
    checkpoint: Checkpoint = dataclasses.replace(load_checkpoint(checkpoint_path), **changes)
    save_checkpoint(target, checkpoint)
    return target


def test_images_of_the_user_s_own(checkpoint_path: Path, tmp_path: Path) -> None:
    bare = altered(checkpoint_path, tmp_path / "bare.pt", sample_images=None)
    images = tmp_path / "images"
    images.mkdir()
    for index in range(3):
        Image.new("RGB", (40, 50), (80 * index, 10, 200)).save(images / f"{index}.jpg")
    without = export_checkpoint(bare, tmp_path / "without.onnx", OPTIONS)
    assert without.parity.real_images == 0
    groups = {row.group for row in without.parity.logits}
    assert groups - {"all, native kernels"} == {"extremes", "batch of one"}
    with_images = export_checkpoint(bare, tmp_path / "with.onnx", dataclasses.replace(OPTIONS, data=images))
    assert with_images.parity.real_images == 3


def test_a_failed_gate_leaves_what_was_there(
    checkpoint_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = export.function_body._TABLES.replace("value_float: float = -0.5", "value_float: float = -0.45")
    monkeypatch.setattr(export.function_body, "_TABLES", wrong)
    output = tmp_path / "model.onnx"
    with pytest.raises(ParityError, match=r"exported node .* nothing was written"):
        export_checkpoint(checkpoint_path, output, OPTIONS)
    assert list(tmp_path.iterdir()) == []
    output.write_bytes(b"an older export")
    with pytest.raises(ParityError):
        export_checkpoint(checkpoint_path, output, OPTIONS)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert output.read_bytes() == b"an older export"


def _truncate(source: Path, target: Path) -> None:
    target.write_bytes(source.read_bytes()[:5000])


def _poison(source: Path, target: Path) -> None:
    state = dict(load_checkpoint(source).state_dict)
    state["layer1.0.bn1.running_mean"] = torch.full_like(state["layer1.0.bn1.running_mean"], torch.nan)
    altered(source, target, state_dict=state)


def _drop(source: Path, target: Path) -> None:
    state = dict(load_checkpoint(source).state_dict)
    del state["fc.weight"]
    altered(source, target, state_dict=state)


def _foreign(_source: Path, target: Path) -> None:
    torch.save({"weights": torch.zeros(3)}, target)


def _pickle(_source: Path, target: Path) -> None:
    torch.save({"format": Path("x")}, target)


@pytest.mark.parametrize("damage", [_truncate, _poison, _drop, _foreign, _pickle])
def test_a_damaged_checkpoint_leaves_nothing_behind(checkpoint_path: Path, tmp_path: Path, damage) -> None:
    damaged, output = tmp_path / "damaged.pt", tmp_path / "out" / "model.onnx"
    damage(checkpoint_path, damaged)
    with pytest.raises(CheckpointError):
        export_checkpoint(damaged, output, OPTIONS)
    assert not list(tmp_path.rglob("*.onnx*"))
    assert not list(tmp_path.rglob("*.tmp"))


def test_impossible_outputs_are_refused_before_the_work(checkpoint_path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "model.pt"
    shutil.copy(checkpoint_path, copy)
    (tmp_path / "file").write_text("in the way")
    for output, sentence in (
        (tmp_path, "is a folder"),
        (copy, "the checkpoint itself"),
        (tmp_path / "file" / "model.onnx", "Cannot write"),
    ):
        with pytest.raises(OutputError, match=sentence):
            export_checkpoint(copy, output, OPTIONS)
    assert load_checkpoint(copy).description.architecture == "resnet20"


def test_a_folder_without_images_is_refused(checkpoint_path: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no"):
        export_checkpoint(checkpoint_path, tmp_path / "model.onnx", dataclasses.replace(OPTIONS, data=tmp_path))
