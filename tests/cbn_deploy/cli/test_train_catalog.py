"""The paper's experiments from the command line: listed, found, and really run on a very small CIFAR."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cbn_deploy.checkpoint import load_checkpoint
from cbn_deploy.cli import train as command
from cbn_deploy.models import ArchitectureConfig, create_model
from tests.cbn_deploy.data import published_trees as trees
from tests.checkpoints import digit_pixels
from tests.tiny_runs import one_thread

NAMES = [f"class{k}" for k in range(10)]


@pytest.fixture
def cbn_train(monkeypatch, capsys):
    """Run the command in this process: (exit code, stdout, stderr)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["cbn-train", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            command.main()
        return caught.value.code or 0, *capsys.readouterr()

    return run


def records(pixels, labels):
    """CIFAR-10's binary layout: a label byte, then red, green and blue planes."""
    planes = pixels.transpose(0, 3, 1, 2).reshape(len(pixels), -1)
    return np.concatenate([labels.astype(np.uint8)[:, None], planes], axis=1).tobytes()


@pytest.fixture(scope="session")
def small_cifar(tmp_path_factory) -> Path:
    """100 training and 20 test images in CIFAR-10's official binary layout: rho 10 leaves 10 ... 1 of them a class."""
    folder = tmp_path_factory.mktemp("cifar") / "cifar-10-batches-bin"
    folder.mkdir()
    pixels, labels = digit_pixels(400)
    chosen = np.concatenate([np.flatnonzero(labels == k)[:12] for k in range(10)])
    train, test = (np.concatenate([chosen[k * 12 :][part] for k in range(10)]) for part in (slice(10), slice(10, 12)))
    for number, part in enumerate(np.array_split(train, 5), start=1):
        (folder / f"data_batch_{number}.bin").write_bytes(records(pixels[part], labels[part]))
    (folder / "test_batch.bin").write_bytes(records(pixels[test], labels[test]))
    (folder / "batches.meta.txt").write_text("\n".join(NAMES))
    return folder.parent


@pytest.mark.parametrize(
    ("name", "title", "figure", "dual"),
    [
        ("sbn", "batch norm (1 Gaussian) beside split batch norm of 4 class groups, dual path without", "88.89", True),
        ("cbn-sbn-dpl", "4 Gaussians a layer, dual path", "91.82", True),
        ("bn-two-views", "resnet32-bn, plain batch norm, two consistent views", "our control", False),
    ],
)
def test_experiments_run_from_the_command_line(cbn_train, small_cifar, tmp_path, name, title, figure, dual):
    recipe = f"cifar10-lt/rho10/{name}"
    arguments = ["--data", small_cifar, "--out", tmp_path, "--set", "epochs=1", "--set", "batch_size=16"]
    with one_thread():
        code, out, err = cbn_train(recipe, *arguments)
    assert (code, err) == (0, "")
    assert f"{recipe}: resnet32" in out
    assert title in " ".join(out.split())
    report = json.loads((tmp_path / "report.json").read_text())
    paper = report["comparison"]
    assert paper["experiment"] == recipe
    assert paper["differences"][:2] == ["epochs 1 instead of 400", "batch_size 16 instead of 128"]
    assert "training images instead of 20,431" in paper["differences"][2]
    assert "NOT the published setting" in out
    assert "TCM 89.7" in out
    page = (tmp_path / "report.html").read_text()
    assert "Beside the paper" in page
    assert "epochs 1 instead of 400" in page
    assert "TCM" in page
    assert figure in out
    checkpoint = load_checkpoint(tmp_path / "model.pt")
    assert (checkpoint.architecture.norm is not None) == dual
    if name == "sbn":
        split = {key: value for key, value in checkpoint.state_dict.items() if key.endswith("bn1.split.running_mean")}
        assert all(value.shape[0] == 4 for value in split.values())
        assert all(value.abs().sum(dim=1).gt(0).sum() >= 3 for value in split.values())  # groups have learned
    assert bool(report["mixture"]) == (name == "cbn-sbn-dpl")
    losses = report["history"][-1]
    assert (losses["split_loss"] is not None) == dual
    assert (losses["consistency_loss"] is not None) == (name != "sbn")


def test_a_run_starts_from_given_weights_and_resumes_without_them(cbn_train, small_cifar, tmp_path):
    weights, out = tmp_path / "weights.pth", tmp_path / "out"
    torch.save(create_model(ArchitectureConfig(name="resnet8-bn", num_classes=7)).state_dict(), weights)
    arguments = ["cifar10-lt/rho10/cbn", "--data", small_cifar, "--out", out, "--set", "model=resnet8"]
    arguments += ["--set", "batch_size=16", "--set", "epochs=1", "--set", f"init_from={weights}"]
    code, text, err = cbn_train(*arguments)
    assert (code, err) == (0, "")
    assert "from weights.pth" in text
    weights.unlink()
    (out / "model.pt").unlink()
    code, _, err = cbn_train(*arguments, "--resume")
    assert (code, err) == (0, "")
    assert (out / "model.pt").exists()


def test_missing_weights_are_said_before_anything_is_written(cbn_train, small_cifar, tmp_path):
    arguments = ["cifar10-lt/rho10/cbn", "--data", small_cifar, "--out", tmp_path / "out", "--set", "init_from=no.pth"]
    code, _, err = cbn_train(*arguments)
    assert code == 2
    assert "no.pth does not exist" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out" / "last.pt").exists()


def test_the_list_has_every_table_with_the_papers_figures(cbn_train):
    code, out, _ = cbn_train("--list")
    assert code == 0
    lines = out.splitlines()
    for title in (*(f"Table {number}:" for number in range(2, 8)), "Figure 5:", "Figure 6:", "Controls:"):
        assert any(title in line for line in lines)
    assert any("cifar10-lt/rho100/cbn-sbn-dpl" in line and "84.98" in line for line in lines)
    assert any("cifar100-lt/rho50/cbn-sbn-dpl" in line and "58.13" in line for line in lines)
    assert any("cifar100-lt/rho50/cbn-sbn-dpl" in line and "60.0" in line for line in lines)
    assert any("cifar100-lt/rho100/cbn-dt-rw-rs" in line and "52.86" in line for line in lines)
    assert any("inaturalist2018/cbn-sbn-dpl" in line and "74.8" in line for line in lines)


def test_the_list_can_be_filtered(cbn_train):
    code, out, _ = cbn_train("--list", "table 3")
    assert code == 0
    assert "Table 3:" in out
    assert "Table 2:" not in out
    code, out, _ = cbn_train("--list", "cifar10-lt/*/sbn")
    assert [word for word in out.split() if "/" in word] == [f"cifar10-lt/rho{rho}/sbn" for rho in (100, 50, 10)]
    code, out, _ = cbn_train("digits", "--list")
    assert "digits-lt" in out
    assert "Table" not in out


def test_a_whole_name_lists_its_settings(cbn_train):
    code, out, _ = cbn_train("cifar10-lt/rho10/m4", "--list")
    assert code == 2
    code, out, _ = cbn_train("cifar100-lt/rho100/m4", "--list")
    assert code == 0
    assert "Settings of cifar100-lt/rho100/cbn-sbn-dpl" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--list", "tabel 7"], "did you mean 'table 7'"),
        (["cifar10-lt/rho100/cbn-sbn-dlp"], "did you mean 'cifar10-lt/rho100/cbn-sbn-dpl'"),
        (["cifar10-lt/rho100/cbn", "--set", "norm.class_grouping=strided"], "no split path is trained"),
        (["cifar10-lt/rho100/sbn", "--set", "norm.density_scale=joint"], "one Gaussian has every pixel"),
        (["cifar10-lt/rho100/m1"], "did you mean"),
        (["imagenet-lt/baseline"], "--data"),
    ],
)
def test_mistakes_get_one_sentence(cbn_train, monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, _, err = cbn_train(*arguments)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("recipe", "rows", "figure"),
    [
        ("imagenet-lt/cbn-sbn-dpl", trees.imagenet_rows, "57.4 % (Table 5"),
        ("places-lt/cbn-sbn-dpl", trees.places_v2_rows, "42.7 % (Table 6"),
        ("inaturalist2018/baseline", trees.inaturalist_rows, "our control"),
    ],
)
def test_the_large_sets_run_on_their_lists(cbn_train, tmp_path, recipe, rows, figure):
    source, data, weights = recipe.split("/")[0], tmp_path / "data", tmp_path / "weights.pth"
    trees.write_images(data, rows())
    trees.write_lists(data, source, rows())
    torch.save(create_model(ArchitectureConfig(name="resnet8-bn", num_classes=1000)).state_dict(), weights)
    model = "resnet8-bn" if recipe.endswith("baseline") else "resnet8"
    settings = [f"model={model}", "data.image_size=32", "data.resize_shorter=36", "batch_size=4", "epochs=1"]
    settings += [f"init_from={weights}"] if source == "places-lt" else []
    arguments = [word for setting in settings for word in ("--set", setting)]
    with one_thread():
        code, out, err = cbn_train(recipe, "--data", data, "--out", tmp_path / "out", *arguments)
    assert (code, err) == (0, "")
    assert figure in out
    assert "training images instead of" in out
    assert ("from weights.pth" in out) == (source == "places-lt")
    choices = json.loads((tmp_path / "out" / "report.json").read_text())["comparison"]["choices"]
    assert any(choice.startswith("epochs=") for choice in choices)
