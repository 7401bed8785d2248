from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from cbn_deploy.checkpoint import load_checkpoint
from cbn_deploy.cli import train as command
from cbn_deploy.training.folder import RunFolder
from cbn_deploy.training.metrics_log import read_metrics
from cbn_deploy.training.state import load_state
from tests.tiny_runs import EPOCHS, SETTINGS, one_thread, write_photos

SET = [word for setting in SETTINGS for word in ("--set", setting)]


@pytest.fixture
def cbn_train(monkeypatch, capsys):
    """Run the command in this process: (exit code, stdout, stderr)."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["cbn-train", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            command.main()
        return caught.value.code or 0, *capsys.readouterr()

    return run


def test_a_whole_run_and_its_lines(cbn_train, photos, finished_run, tmp_path):
    with one_thread():
        code, out, err = cbn_train("image-folder", "--data", photos, "--out", tmp_path, *SET)
    assert (code, err) == (0, "")
    assert "image-folder: resnet20, 4 Gaussians a layer, dual path" in out
    epochs = [line for line in out.splitlines() if line.startswith("epoch ")]
    assert [line.split()[1] for line in epochs] == [f"{epoch}/{EPOCHS}" for epoch in range(1, EPOCHS + 1)]
    for word in ("loss", "training accuracy", "test", "images/s", "left"):
        assert word in epochs[0]
    assert "left" not in epochs[-1]
    assert "top-1" in out
    ours, theirs = (load_checkpoint(folder / "model.pt").state_dict for folder in (tmp_path, finished_run))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_second_run_into_the_folder_is_refused(cbn_train, photos, finished_run):
    code, _, err = cbn_train("image-folder", "--data", photos, "--out", finished_run, *SET)
    assert code == 2
    assert "already holds a run" in err


@pytest.mark.parametrize("more", [[], ["--resume"]])
def test_a_folder_that_another_process_trains_into_is_refused(cbn_train, photos, finished_run, tmp_path, more):
    if more:
        shutil.copytree(finished_run, tmp_path, dirs_exist_ok=True)
    with RunFolder(tmp_path).held():
        code, _, err = cbn_train("image-folder", "--data", photos, "--out", tmp_path, *SET, *more)
    assert code == 2
    assert "Another process is training into" in err


def test_resuming_something_else_is_refused(cbn_train, photos, finished_run):
    code, _, err = cbn_train("image-folder", "--data", photos, "--out", finished_run, *SET, "--set", "lr=1", "--resume")
    assert code == 2
    assert "optimizer.lr=0.02 (now 1.0)" in err


def test_list_names_recipes_and_settings(cbn_train):
    code, out, _ = cbn_train("--list")
    assert code == 0
    assert all(name in out for name in ("digits-lt", "cifar10-lt", "cifar100-lt", "image-folder"))
    code, out, _ = cbn_train("cifar10-lt", "--list")
    listed, left_out = out.split("Without effect here")
    assert "loss.focal_gamma" in left_out
    assert "loss.focal_gamma" not in listed
    _, out, _ = cbn_train("cifar10-lt", "--list", "--set", "loss.classification=focal")
    assert "loss.focal_gamma" in out.split("Without effect here")[0]
    code, out, _ = cbn_train("cifar10-lt", "--list", "--set", "lr=0.3")
    assert code == 0
    assert all(key in out for key in ("components", "norm.density_scale", "0.3"))


def test_check_of_sound_data(cbn_train, tmp_path):
    code, out, err = cbn_train("digits-lt", "--check", "--out", tmp_path / "out")
    assert (code, err) == (0, "")
    assert "No problems found" in out
    assert not (tmp_path / "out").exists()


def test_check_shows_on_a_screen_how_far_it_is(cbn_train, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes the captured stderr for a terminal
    code, _, err = cbn_train("digits-lt", "--check")
    assert code == 0
    assert "Decoding" in err
    assert "838/838" in err


def test_check_of_data_with_a_problem(cbn_train, photos, tmp_path):
    for split in ("train", "test"):
        (tmp_path / split).symlink_to(photos / split)
    broken = tmp_path / "train" / "zero" / "broken.png"
    broken.write_bytes(b"not a png")
    try:
        code, out, err = cbn_train("image-folder", "--check", "--data", tmp_path)
    finally:
        broken.unlink()
    assert code == 2
    assert "broken.png" in out
    assert "problem" in err


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_one_sentence_wherever_it_is_read(cbn_train, tmp_path, workers):
    write_photos(tmp_path)
    damaged = tmp_path / "train" / "zero" / "0.png"
    damaged.write_bytes(damaged.read_bytes()[:100])
    code, _, err = cbn_train("image-folder", "--data", tmp_path, "--out", tmp_path / "out", "--workers", workers, *SET)
    assert code == 2
    assert f"{damaged}: The PNG image is truncated or damaged." in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Say which recipe"),
        (["digit-lt"], "did you mean 'digits-lt'"),
        (["digits-lt", "--set", "lrr=1"], "did you mean 'lr'"),
        (["digits-lt", "--set", "epochs=many"], "epochs must be a whole number"),
        (["digits-lt", "--set", "rho=5000"], "without training images"),
        (["digits-lt", "--data", "/no/folder"], "reads no folder; leave out --data"),
        (["digits-lt", "--data", ".", "--check"], "reads no folder; leave out --data"),
        (["digits-lt", "--device", "tpu"], "no device 'tpu'"),
        (["digits-lt", "--resume", "--out", "nowhere"], "no run to resume"),
        (["digits-lt", "--out", "/proc/no/folder"], "Cannot write"),
        (["cifar10-lt"], "--data"),
        (["cifar10-lt", "--data", "/no/folder"], "/no/folder"),
        (["image-folder", "--data", "/no/folder"], "/no/folder"),
        (["image-folder", "--check"], "--data"),
    ],
)
def test_mistakes_get_one_sentence_and_exit_code_2(cbn_train, monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, _, err = cbn_train(*arguments)
    assert code == 2
    assert message in err
    assert err.startswith("Error: ")
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("workers", ["0", "1"])
def test_ctrl_c_keeps_the_epochs_and_says_how_to_go_on(photos, tmp_path, workers):
    arguments = ["image-folder", "--data", str(photos), "--out", str(tmp_path), "--workers", workers, *SET]
    arguments += ["--set", "epochs=40", "--threads", "1"]
    process = subprocess.Popen(
        [sys.executable, "-c", "from cbn_deploy.cli.train import main; main()", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # as in a terminal, the workers get the signal too
    )
    try:
        deadline = time.monotonic() + 120
        while not read_metrics(tmp_path / "metrics.jsonl"):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert load_state(tmp_path / "last.pt").epoch >= 1
    sentence = err.strip().splitlines()[-1]
    assert f"of 40 epochs are saved. Go on with: cbn-train image-folder --data {photos} --out {tmp_path}" in sentence
    options = "--workers 1 --threads 1" if workers == "1" else "--threads 1"
    assert sentence.endswith(f"--set epochs=40 {options} --resume")
    assert "Traceback" not in err


def test_compare_prints_the_finished_runs(cbn_train, finished_run, tmp_path):
    report = json.loads((finished_run / "report.json").read_text())
    recall = report["evaluation"]["balanced_accuracy"]
    for name, model in (("cbn-1", "resnet20"), ("bn-0", "resnet20-bn")):
        report["recipe"] |= {"model": model, "seed": int(name[-1])}
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_text(json.dumps(report))
    report["recipe"] |= {"model": "resnet20", "seed": 0}
    report["evaluation"]["balanced_accuracy"] = recall - 0.1
    (tmp_path / "cbn-0").mkdir()
    (tmp_path / "cbn-0" / "report.json").write_text(json.dumps(report))
    code, out, err = cbn_train("--compare", tmp_path)
    assert (code, err) == (0, "")
    lines = [line.strip() for line in out.splitlines()]
    row = next(line for line in lines if line.startswith("model=resnet20, "))
    assert row.split()[2:5] == ["2", f"{100 * recall - 5:.1f}", "±7.1"]
    # The photographs have no class of more than 100: no column for those.
    heads = next(line for line in lines if line.startswith("training "))
    assert [group for group in ("many", "medium", "few") if group in heads] == [
        group for group in ("many", "medium", "few") if report["evaluation"][group] is not None
    ]
    assert "many" not in heads
    rows = "model=resnet20, loss.paths=compound+split over model=resnet20-bn, loss.paths=compound"
    assert f"{rows}, seed by seed: -10.0 in mean recall, 0 of 1 above" in lines
    assert "Fewer than three seeds" in out
    assert "do not have the same seeds" in out
    picture = tmp_path / "compared.svg"
    assert cbn_train("--compare", tmp_path, "--plot", picture)[0] == 0
    assert "<!-- Gain in recall over model=resnet20-bn, loss.paths=compound -->" in picture.read_text()


def test_a_picture_needs_a_comparison_and_a_format(cbn_train, finished_run, tmp_path):
    code, _, err = cbn_train("digits-lt", "--plot", tmp_path / "x.png")
    assert code == 2
    assert "--plot draws what --compare compares" in err
    code, out, err = cbn_train("--compare", finished_run, "--plot", tmp_path / "x.gif")
    assert (code, out) == (2, "")
    assert "name the picture by its format" in err


def test_compare_trains_nothing(cbn_train, tmp_path):
    code, _, err = cbn_train("digits-lt", "--compare", tmp_path)
    assert code == 2
    assert "--compare trains nothing" in err
    code, _, err = cbn_train("--compare", tmp_path)
    assert code == 2
    assert "no finished run" in err


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--data", "photos"], "--data"),
        (["--out", "runs"], "--out"),
        (["--set", "epochs=1", "--resume"], "--set, --resume"),
        (["--check"], "--check"),
        (["--workers", "2", "--device", "cpu", "--compile"], "--workers, --device, --compile"),
    ],
)
def test_compare_refuses_what_is_for_a_training(cbn_train, finished_run, options, named):
    code, out, err = cbn_train("--compare", finished_run, *options)
    assert (code, out) == (2, "")
    assert err == f"Error: --compare trains nothing and reads finished runs alone; leave out {named}.\n"
