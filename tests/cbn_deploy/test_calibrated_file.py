"""A temperature in the file changes the file's words about itself and nothing else."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from cbn_deploy.calibrated_file import description_digest, write_temperature
from cbn_deploy.checkpoint import load_checkpoint
from cbn_deploy.errors import ModelFileError, OutputError
from cbn_deploy.runtime.engine_file import read_engine_file
from cbn_deploy.runtime.factory import open_session
from cbn_deploy.runtime.onnx_file import read_onnx_file
from tests.engine_files import ENGINE, describe_engine
from tests.onnx_models import SIZE, describe, write_colour_model


def write(path: Path, temperature: float) -> None:
    write_temperature(path, temperature, digest=description_digest(path))


def test_an_onnx_file_keeps_everything_else(tmp_path: Path) -> None:
    path = write_colour_model(tmp_path / "model.onnx")
    before = onnx.load(path)
    images = np.random.default_rng(0).normal(size=(4, 3, SIZE, SIZE)).astype(np.float32)
    with open_session(path, threads=1) as session:
        logits = session.run(images).logits
    write(path, 1.625)
    write(path, 2.375)  # the second replaces the first
    after = onnx.load(path)
    onnx.checker.check_model(after, full_check=True)
    assert [entry.key for entry in after.metadata_props].count("cbn.temperature") == 1
    with open_session(path, threads=1) as session:
        assert session.description == dataclasses.replace(describe(), temperature=2.375)
        np.testing.assert_array_equal(session.run(images).logits, logits)
    for model in (before, after):
        del model.metadata_props[:]
    assert after.SerializeToString(deterministic=True) == before.SerializeToString(deterministic=True)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


def test_foreign_metadata_of_an_onnx_file_stays(tmp_path: Path) -> None:
    path = write_colour_model(tmp_path / "model.onnx")
    model = onnx.load(path)
    onnx.helper.set_model_props(
        model, {**{p.key: p.value for p in model.metadata_props}, "author": "someone", "cbn.newer": "1"}
    )
    path.write_bytes(model.SerializeToString())
    write(path, 1.5)
    metadata = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert (metadata["author"], metadata["cbn.newer"], metadata["cbn.temperature"]) == ("someone", "1", "1.5")


def test_a_checkpoint_keeps_its_tensors(checkpoint_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(checkpoint_path.read_bytes())
    write(path, 0.75)
    before, after = load_checkpoint(checkpoint_path), load_checkpoint(path)
    assert after.description == dataclasses.replace(before.description, temperature=0.75)
    assert after.architecture == before.architecture
    assert after.state_dict.keys() == before.state_dict.keys()
    assert all(torch.equal(after.state_dict[name], tensor) for name, tensor in before.state_dict.items())
    assert torch.equal(after.sample_images, before.sample_images)


def test_an_engine_keeps_its_bytes(tmp_path: Path) -> None:
    engine = tmp_path / "model.engine"
    engine.write_bytes(ENGINE)
    description = describe_engine()
    (tmp_path / "model.engine.json").write_text(json.dumps(description.to_dict()))
    write(engine, 3.0)
    expected = dataclasses.replace(description, model=dataclasses.replace(describe(), temperature=3.0))
    assert read_engine_file(engine).description == expected


def test_a_link_still_leads_to_the_file(tmp_path: Path) -> None:
    real = write_colour_model(tmp_path / "v1.onnx")
    link = tmp_path / "model.onnx"
    link.symlink_to(real.name)
    write(link, 1.25)
    assert link.is_symlink()
    assert read_onnx_file(real).description.temperature == 1.25


def test_a_file_that_was_replaced_meanwhile_is_left_alone(tmp_path: Path) -> None:
    path = write_colour_model(tmp_path / "model.onnx")
    digest = description_digest(path)
    newer = path.read_bytes().replace(b'"colours"', b'"COLOURS"')
    path.write_bytes(newer)
    with pytest.raises(OutputError, match="replaced while"):
        write_temperature(path, 1.5, digest=digest)
    assert path.read_bytes() == newer
    path.unlink()
    with pytest.raises(OutputError, match="replaced while"):
        write_temperature(path, 1.5, digest=digest)
    assert description_digest(path) is None


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_temperatures(tmp_path: Path, temperature: float) -> None:
    path = write_colour_model(tmp_path / "model.onnx")
    content = path.read_bytes()
    with pytest.raises(ValueError, match="temperature must be"):
        write(path, temperature)
    assert path.read_bytes() == content


def test_other_files_are_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(write_colour_model(tmp_path / "model.onnx").read_bytes())
    with pytest.raises(ModelFileError, match="neither"):
        write(path, 1.5)


def test_a_folder_that_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_colour_model(tmp_path / "model.onnx")
    content = path.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match="No space left"):
        write(path, 1.5)
    assert path.read_bytes() == content
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
