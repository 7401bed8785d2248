"""model.pt: round trip, and every way in which it can be wrong."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pickle
import resource
import zipfile
from pathlib import Path

import pytest
import torch

from cbn_deploy.checkpoint import file_sha256, load_checkpoint, load_model, save_checkpoint
from cbn_deploy.errors import CheckpointError, OutputError
from cbn_deploy.norm import NormConfig
from tests.checkpoints import make_checkpoint
from tests.onnx_models import colour_model


def test_round_trip_gives_the_same_model(checkpoint_path: Path, tmp_path: Path) -> None:
    first = load_checkpoint(checkpoint_path)
    save_checkpoint(tmp_path / "copy.pt", first)
    second = load_checkpoint(tmp_path / "copy.pt")
    assert second.architecture == first.architecture
    assert second.description == first.description
    assert torch.equal(second.sample_images, first.sample_images)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(load_model(first)(x), load_model(second)(x))


def test_loading_a_model_leaves_the_callers_random_numbers_alone(checkpoint_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.randn(3)
    torch.manual_seed(5)
    load_model(load_checkpoint(checkpoint_path))
    assert torch.equal(torch.randn(3), expected)


class Payload:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch /tmp/this-must-never-appear",)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    marker = Path("/tmp/this-must-never-appear")  # noqa: S108 - the payload's own target
    path = tmp_path / "evil.pt"
    torch.save({"format": "cbn-checkpoint", "state_dict": Payload()}, path)
    with pytest.raises(CheckpointError, match="more than plain tensors"):
        load_checkpoint(path)
    path.write_bytes(pickle.dumps(Payload()))
    with pytest.raises(CheckpointError):
        load_checkpoint(path)
    assert not marker.exists()


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.999])
def test_truncated_files(checkpoint_path: Path, tmp_path: Path, keep: float) -> None:
    content = checkpoint_path.read_bytes()
    path = tmp_path / "truncated.pt"
    path.write_bytes(content[: int(keep * len(content)) if 0 < keep < 1 else int(keep)])
    with pytest.raises(CheckpointError, match="truncated"):
        load_checkpoint(path)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        load_checkpoint(tmp_path / "absent.pt")
    with pytest.raises(CheckpointError, match=r"is a folder without a model\.pt"):
        load_checkpoint(tmp_path)
    (tmp_path / "model.pt").touch()
    with pytest.raises(CheckpointError, match=f"is a folder; give {tmp_path}/model.pt"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["photos.onnx", "renamed.pt"])
def test_an_onnx_file_is_none(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(colour_model().SerializeToString())
    with pytest.raises(CheckpointError, match=r"is an ONNX file, not a checkpoint; give the model\.pt"):
        load_checkpoint(path)


def test_a_torchscript_file_is_none_and_torch_is_not_asked(tmp_path: Path) -> None:
    """Warnings are errors in these tests, and torch warns of such a file."""
    path = tmp_path / "scripted.pt"
    with zipfile.ZipFile(path, "w") as archive:
        for member in ("data.pkl", "code/__torch__.py", "constants.pkl", "version"):
            archive.writestr(f"scripted/{member}", b"3")
    with pytest.raises(CheckpointError, match=r"is a TorchScript file, not a checkpoint; give the model\.pt"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.zeros(3), "not a checkpoint"),
        ({"state_dict": {}}, "not a cbn checkpoint"),
        ({"format": "cbn-checkpoint", "version": 99}, "version 99"),
        ({"format": "cbn-checkpoint", "version": 1}, "incomplete"),
    ],
)
def test_foreign_torch_files(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "foreign.pt")
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path / "foreign.pt")


def test_tensors_that_do_not_fit_or_are_not_finite(checkpoint_path: Path) -> None:
    good = load_checkpoint(checkpoint_path)
    missing = {k: v for k, v in good.state_dict.items() if k != "fc.bias"}
    with pytest.raises(CheckpointError, match="do not fit"):
        load_model(dataclasses.replace(good, state_dict=missing))
    poisoned = {**good.state_dict, "fc.bias": torch.full((10,), float("nan"))}
    with pytest.raises(CheckpointError, match="not finite"):
        load_model(dataclasses.replace(good, state_dict=poisoned))
    wrong = dataclasses.replace(good, state_dict={**good.state_dict, "fc.bias": torch.zeros(3)})
    with pytest.raises(CheckpointError, match="do not fit"):
        load_model(wrong)


def test_wrong_sample_images(checkpoint_path: Path, tmp_path: Path) -> None:
    good = load_checkpoint(checkpoint_path)
    save_checkpoint(tmp_path / "m.pt", dataclasses.replace(good, sample_images=torch.zeros(2, 8, 8, 3)))
    with pytest.raises(CheckpointError, match="sample images"):
        load_checkpoint(tmp_path / "m.pt")


@pytest.mark.parametrize(
    ("part", "field"),
    [("description", "format_version"), ("description", "components"), ("architecture", "num_classes")],
)
def test_numbers_without_end(checkpoint_path: Path, tmp_path: Path, part: str, field: str) -> None:
    plain = torch.load(checkpoint_path, weights_only=True)
    plain[part][field] = float("inf")
    torch.save(plain, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match="incomplete or damaged"):
        load_checkpoint(tmp_path / "m.pt")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("components", 4.5),
        ("components", True),
        ("split_groups", 2.5),
        ("eps", float("inf")),
        ("density_scale", float("inf")),
    ],
)
def test_impossible_numbers_of_the_layers(checkpoint_path: Path, tmp_path: Path, field: str, value: float) -> None:
    plain = torch.load(checkpoint_path, weights_only=True)
    plain["architecture"]["norm"][field] = value
    torch.save(plain, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=f"incomplete or damaged.*{field} must be"):
        load_checkpoint(tmp_path / "m.pt")


@pytest.mark.parametrize("field", ["components", "split_groups"])
@pytest.mark.parametrize("number", [5, 10**13])
def test_components_that_the_tensors_have_not_are_not_allocated(
    checkpoint_path: Path, field: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = load_checkpoint(checkpoint_path)
    norm = dataclasses.replace(good.architecture.norm, **{field: number})
    edited = dataclasses.replace(good, architecture=dataclasses.replace(good.architecture, norm=norm))
    monkeypatch.setattr("cbn_deploy.checkpoint.create_model", lambda *_: pytest.fail("the network was built"))
    with pytest.raises(CheckpointError, match="do not fit"):
        load_model(edited)


@pytest.mark.parametrize("split_groups", [None, 3])
def test_a_layer_with_class_groups_of_its_own(tmp_path: Path, split_groups: int | None) -> None:
    norm = NormConfig(components=2, split_groups=split_groups)
    make_checkpoint(tmp_path / "m.pt", "resnet8", norm, steps=1)
    assert load_model(load_checkpoint(tmp_path / "m.pt")).bn1.config == norm


def test_a_network_that_cannot_be_built(checkpoint_path: Path) -> None:
    good = load_checkpoint(checkpoint_path)
    norm = dataclasses.replace(good.architecture.norm, class_grouping="frequency")
    architecture = dataclasses.replace(good.architecture, norm=norm, num_classes=11)
    with pytest.raises(CheckpointError, match="do not fit"):
        load_model(dataclasses.replace(good, architecture=architecture))


@pytest.mark.parametrize("outputs", [2, 11, 10**15])
def test_outputs_without_names(checkpoint_path: Path, tmp_path: Path, outputs: int) -> None:
    plain = torch.load(checkpoint_path, weights_only=True)
    plain["architecture"]["num_classes"] = outputs
    torch.save(plain, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=f"has {outputs} outputs but 10 class names"):
        load_checkpoint(tmp_path / "m.pt")


@pytest.mark.parametrize("number", [10.5, True, "10"])
def test_a_number_of_classes_that_is_none(checkpoint_path: Path, tmp_path: Path, number: object) -> None:
    plain = torch.load(checkpoint_path, weights_only=True)
    plain["architecture"]["num_classes"] = number
    torch.save(plain, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match="num_classes must be a whole number"):
        load_checkpoint(tmp_path / "m.pt")


def test_a_failed_save_leaves_the_old_file(checkpoint_path: Path, tmp_path: Path) -> None:
    good = load_checkpoint(checkpoint_path)
    path = tmp_path / "m.pt"
    path.write_bytes(b"old")
    with pytest.raises(AttributeError):
        save_checkpoint(path, dataclasses.replace(good, state_dict={"x": "not a tensor"}))
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["m.pt"]
    with pytest.raises(OutputError, match="choose another folder"):
        save_checkpoint(path / "below-a-file" / "m.pt", good)


def test_a_full_disk_is_one_sentence(checkpoint_path: Path, tmp_path: Path) -> None:
    good = load_checkpoint(checkpoint_path)
    path = tmp_path / "m.pt"
    path.write_bytes(b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # a file takes no more than that: writing fails half-way
    try:
        with pytest.raises(OutputError, match="free space or choose another folder"):
            save_checkpoint(path, good)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["m.pt"]


def test_sha256(tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    (tmp_path / "f").write_bytes(content)
    assert file_sha256(tmp_path / "f") == hashlib.sha256(content).hexdigest()
