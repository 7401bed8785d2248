from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from cbn_deploy.checkpoint import load_checkpoint, load_model
from cbn_deploy.data import load_data
from cbn_deploy.errors import DataError, OutputError, RecipeError, TrainingError
from cbn_deploy.runtime.description import ENERGY_LEVELS
from cbn_deploy.training import Progress, apply_settings, get_recipe, train
from cbn_deploy.training.artifacts import balanced_sample, build_checkpoint
from cbn_deploy.training.metrics_log import read_metrics
from cbn_deploy.training.state import load_state
from tests.tiny_runs import EPOCHS, SETTINGS, TEST_IMAGES, TRAIN_COUNTS


class InterruptAt(Progress):
    """Ctrl-C in the middle of an epoch."""

    def __init__(self, epoch, step):
        self.at = (epoch, step)

    def step_done(self, step):
        if (step.epoch, step.step) == self.at:
            raise KeyboardInterrupt


class Recorder(Progress):
    def __init__(self):
        self.events = []

    def run_started(self, plan):
        self.events.append(("start", plan.completed_epochs, plan.epochs, plan.steps_per_epoch))

    def step_done(self, step):
        self.events.append(("step", step.epoch, step.step))

    def epoch_done(self, metrics):
        self.events.append(("epoch", metrics.epoch))

    def stage(self, text):
        self.events.append(("stage", text))


def weights(path):
    return load_checkpoint(path / "model.pt").state_dict


def assert_same_weights(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


def scores(path):
    """Metrics without the clock's."""
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{key: row[key] for key in row if key not in ("seconds", "images_per_second")} for row in rows]


def test_a_run_leaves_a_checkpoint_that_describes_itself(finished_run, tiny_recipe, photos):
    checkpoint = load_checkpoint(finished_run / "model.pt")
    description = checkpoint.description
    assert description.class_names == tuple(TRAIN_COUNTS)
    assert description.class_counts == tuple(TRAIN_COUNTS.values())
    assert description.architecture == "resnet20"
    assert description.components == 4
    assert description.training_prior == pytest.approx([1 / 3] * 3)
    assert description.preprocessing == load_data(tiny_recipe.data, photos).preprocessing
    assert description.tool_versions["torch"] == torch.__version__


def test_the_sample_images_are_real_test_images(finished_run, tiny_recipe, photos):
    samples = load_checkpoint(finished_run / "model.pt").sample_images
    test = load_data(tiny_recipe.data, photos).test
    np.testing.assert_array_equal(samples.numpy(), np.stack([test.pixels(i) for i in range(len(test))]))


def test_metrics_and_report_agree_with_the_model(finished_run):
    report = json.loads((finished_run / "report.json").read_text())
    history = read_metrics(finished_run / "metrics.jsonl")
    checkpoint = load_checkpoint(finished_run / "model.pt")
    pixels = checkpoint.sample_images.permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        predicted = load_model(checkpoint)((pixels - mean) / std).argmax(1)
    truth = torch.arange(3).repeat_interleave(TEST_IMAGES)
    top1 = (predicted == truth).float().mean().item()
    assert report["evaluation"]["top1"] == pytest.approx(top1)
    assert history[-1].top1 == pytest.approx(top1)
    assert [m.epoch for m in history] == list(range(1, EPOCHS + 1))
    assert report["evaluation"]["many"] is None
    assert report["history"][-1]["loss"] == history[-1].loss


def test_the_same_seed_gives_the_same_weights_whatever_the_workers(finished_run, tiny_recipe, photos, tmp_path):
    train(tiny_recipe, photos, tmp_path / "again", workers=1)
    assert_same_weights(weights(tmp_path / "again"), weights(finished_run))
    assert scores(tmp_path / "again") == scores(finished_run)


def test_another_seed_gives_other_weights(finished_run, tiny_recipe, photos, tmp_path):
    train(apply_settings(tiny_recipe, ["seed=1"]), photos, tmp_path)
    name = "conv1.weight"
    assert not torch.equal(weights(tmp_path)[name], weights(finished_run)[name])


def test_an_interrupted_and_resumed_run_ends_bit_for_bit_the_same(finished_run, tiny_recipe, photos, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(tiny_recipe, photos, tmp_path, progress=InterruptAt(2, 3))
    assert not (tmp_path / "model.pt").exists()
    assert load_state(tmp_path / "last.pt").epoch == 1
    recorder = Recorder()
    torch.manual_seed(99)  # whatever the process did before
    train(tiny_recipe, photos, tmp_path, resume=True, progress=recorder)
    assert recorder.events[0] == ("start", 1, EPOCHS, 4)
    assert recorder.events[1] == ("step", 2, 1)
    assert_same_weights(weights(tmp_path), weights(finished_run))
    assert scores(tmp_path) == scores(finished_run)


def test_a_run_stopped_before_its_first_epoch_can_be_resumed_or_restarted(finished_run, tiny_recipe, photos, tmp_path):
    for resume in (False, True):
        with pytest.raises(KeyboardInterrupt):
            train(tiny_recipe, photos, tmp_path, resume=resume, progress=InterruptAt(1, 1))
    train(tiny_recipe, photos, tmp_path, resume=True)
    assert_same_weights(weights(tmp_path), weights(finished_run))


def test_a_killed_process_loses_at_most_one_epoch(finished_run, tiny_recipe, photos, tmp_path):
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    arguments = ["image-folder", "--data", str(photos), "--out", str(tmp_path), "--threads", "1", *settings]
    command = [sys.executable, "-c", "from cbn_deploy.cli.train import main; main()", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not read_metrics(tmp_path / "metrics.jsonl"):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "model.pt").exists()
    completed = load_state(tmp_path / "last.pt").epoch
    assert completed >= len(read_metrics(tmp_path / "metrics.jsonl")) - 1
    train(tiny_recipe, photos, tmp_path, resume=True)
    assert_same_weights(weights(tmp_path), weights(finished_run))
    assert scores(tmp_path) == scores(finished_run)


def test_resuming_a_finished_run_writes_its_report_again(finished_run, tiny_recipe, photos, tmp_path):
    train(tiny_recipe, photos, tmp_path)
    (tmp_path / "report.html").unlink()
    recorder = Recorder()
    result = train(tiny_recipe, photos, tmp_path, resume=True, progress=recorder)
    assert [event[0] for event in recorder.events] == ["start", "stage"]
    assert result.report.exists()
    assert_same_weights(weights(tmp_path), weights(finished_run))


@pytest.mark.parametrize("left", [None, b"", b"\xff\xfe\x00"], ids=["lost", "empty", "damaged"])
def test_a_run_without_its_metrics_can_still_be_finished(finished_run, tiny_recipe, photos, tmp_path, left):
    shutil.copyfile(finished_run / "last.pt", tmp_path / "last.pt")
    if left is not None:
        (tmp_path / "metrics.jsonl").write_bytes(left)
    train(tiny_recipe, photos, tmp_path, resume=True)
    assert_same_weights(weights(tmp_path), weights(finished_run))
    report, whole = (json.loads((path / "report.json").read_text()) for path in (tmp_path, finished_run))
    assert report["history"] == []
    assert report["evaluation"] == whole["evaluation"]


def test_a_run_is_never_overwritten(finished_run, tiny_recipe, photos):
    before = (finished_run / "model.pt").read_bytes()
    with pytest.raises(OutputError, match="--resume"):
        train(tiny_recipe, photos, finished_run)
    assert (finished_run / "model.pt").read_bytes() == before


def test_another_recipe_is_not_resumed(finished_run, tiny_recipe, photos):
    with pytest.raises(RecipeError, match="batch_size=8"):
        train(apply_settings(tiny_recipe, ["batch_size=4"]), photos, finished_run, resume=True)


def test_divergence_names_the_step_and_what_to_try(tiny_recipe, photos, tmp_path):
    with pytest.raises(TrainingError) as caught:
        train(apply_settings(tiny_recipe, ["lr=1e30"]), photos, tmp_path)
    message = str(caught.value)
    assert "epoch 1, step 2" in message
    assert "--set lr=2e+29" in message
    assert "warmup_epochs" in message
    assert not (tmp_path / "model.pt").exists()


def test_divergence_advises_no_warm_up_that_the_recipe_would_refuse(tiny_recipe, photos, tmp_path):
    with pytest.raises(TrainingError) as caught:
        train(apply_settings(tiny_recipe, ["lr=1e30", "epochs=2"]), photos, tmp_path)
    assert "--set lr=2e+29" in str(caught.value)
    assert "warmup_epochs" not in str(caught.value)


def test_an_unwritable_folder_is_reported_before_training(tiny_recipe, photos):
    recorder = Recorder()
    with pytest.raises(OutputError, match="Cannot write"):
        train(tiny_recipe, photos, "/proc/no/such/folder", progress=recorder)
    assert recorder.events == []


def test_missing_data_leave_no_folder_behind(tiny_recipe, tmp_path):
    with pytest.raises(DataError):
        train(tiny_recipe, tmp_path / "nowhere", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "settings",
    [
        ["model=resnet20-bn"],
        ["loss.paths=compound", "loss.classification=cross_entropy"],
        ["loss.consistency_weight=0"],
    ],
    ids=["batch norm", "compound path", "no consistency"],
)
def test_every_kind_of_run_ends_in_a_model(tiny_recipe, photos, tmp_path, settings):
    recipe = apply_settings(tiny_recipe, [*settings, "epochs=2", "schedule.evaluate_every=2"])
    result = train(recipe, photos, tmp_path)
    history = read_metrics(tmp_path / "metrics.jsonl")
    assert (history[0].split_loss is None) == (not recipe.dual_path)
    assert history[0].consistency_loss is None
    assert history[0].top1 is None  # evaluated every second epoch only
    assert history[1].top1 == result.evaluation.top1
    checkpoint = load_checkpoint(result.checkpoint)
    assert checkpoint.description.components == (0 if recipe.is_batch_norm else 4)
    if recipe.loss.classification == "cross_entropy":
        assert checkpoint.description.training_prior == pytest.approx([14 / 28, 9 / 28, 5 / 28])
    assert ("mixture" in json.loads((tmp_path / "report.json").read_text())) is True
    assert (tmp_path / "plots" / "mixture.png").exists() == (not recipe.is_batch_norm)


def test_a_balanced_sample_takes_every_class_in_turn():
    labels = np.array([0] * 50 + [1] * 3 + [2] * 50)
    chosen = balanced_sample(labels, 20)
    assert np.bincount(labels[chosen]).tolist() == [9, 3, 8]
    assert np.array_equal(chosen, np.unique(chosen))
    assert len(balanced_sample(labels, 1000)) == len(labels)


def test_a_checkpoint_knows_the_energies_of_the_whole_test_set():
    recipe = get_recipe("digits-lt")
    data = load_data(recipe.data, None)
    logits = np.random.default_rng(0).normal(size=(len(data.test), 10)).astype(np.float32)
    quantiles = build_checkpoint(recipe, data, torch.nn.Linear(1, 1), logits).description.energy_quantiles
    expected = np.quantile(-np.log(np.exp(logits.astype(np.float64)).sum(1)), ENERGY_LEVELS)
    assert quantiles["all"] == pytest.approx(expected)


def test_large_images_give_fewer_samples(photos, tiny_recipe):
    recipe = apply_settings(tiny_recipe, ["data.image_size=512"])
    data = load_data(recipe.data, photos)
    model = torch.nn.Linear(1, 1)
    samples = build_checkpoint(recipe, data, model, np.zeros((len(data.test), 5), dtype=np.float32)).sample_images
    assert samples.shape == (5, 512, 512, 3)
    assert samples.numel() <= 4 * 2**20
