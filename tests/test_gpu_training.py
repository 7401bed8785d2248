"""Trainings side by side (benchmarks/gpu/fleet.py) are cbn-train's: the same weights, in one go or resumed."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from benchmarks.gpu.fleet import Group, Plan, Trainee, train_together
from cbn_deploy.data import LongTailedData, load_data, training_loader
from cbn_deploy.errors import CheckpointError, RecipeError
from cbn_deploy.training import RECIPES, apply_settings, train
from cbn_deploy.training.execution import Execution
from cbn_deploy.training.state import load_state

CPU = torch.device("cpu")
SETTINGS = ("epochs=2", "schedule.evaluate_every=2", "views.autoaugment=false", "views.cutout=0")
PLANS = [
    Plan("dual path", 0, apply_settings(RECIPES["digits-lt"], [*SETTINGS, "model=resnet8"])),
    Plan("batch norm", 0, apply_settings(RECIPES["digits-lt"], [*SETTINGS, "model=resnet8-bn", "loss.paths=compound"])),
]


@pytest.fixture(scope="module")
def data() -> LongTailedData:
    return load_data(PLANS[0].recipe.data, None)


def group(data: LongTailedData, folder: Path) -> Group:
    trainees = [Trainee(plan, data, Execution(device=CPU), folder / f"{plan.variant}.pt") for plan in PLANS]
    recipe = PLANS[0].recipe
    loader = training_loader(
        data, recipe.views, batch_size=recipe.schedule.batch_size, seed=0, two_views=True, device=CPU, device_views=True
    )
    made = Group(loader, trainees)
    made.load_test(CPU)
    return made


def test_they_train_as_cbn_train_does_also_when_stopped_and_resumed(data: LongTailedData, tmp_path: Path) -> None:
    first = group(data, tmp_path)
    assert not train_together([first], 1, evaluate_every=5, deadline=time.monotonic() - 1)  # no time: nothing is done
    assert train_together([first], 1, evaluate_every=5, deadline=time.monotonic() + 600)
    resumed = group(data, tmp_path)
    assert [trainee.completed for trainee in resumed.trainees] == [1, 1]
    assert train_together([resumed], 2, evaluate_every=2, deadline=time.monotonic() + 600)
    for trainee in resumed.trainees:
        plan, alone = trainee.plan, tmp_path / f"{trainee.plan.variant} alone"
        result = train(plan.recipe, None, alone, device="cpu")
        expected = load_state(alone / "last.pt").model
        for name, value in trainee.model.state_dict().items():
            assert torch.equal(value, expected[name]), (plan.variant, name)
        report = trainee.report(resumed.test)
        assert report["evaluation"]["top1"] == result.evaluation.top1 == trainee.history[-1].top1
        assert [epoch["epoch"] for epoch in report["history"]] == [1, 2]


def test_a_state_of_another_recipe_is_refused(data: LongTailedData, tmp_path: Path) -> None:
    Trainee(PLANS[0], data, Execution(device=CPU), tmp_path / "state.pt").save()
    with pytest.raises(RecipeError, match="was started with"):
        Trainee(PLANS[1], data, Execution(device=CPU), tmp_path / "state.pt")


def test_those_that_are_further_wait_for_the_others(data: LongTailedData, tmp_path: Path) -> None:
    """A row that is added later, or a kill between two states: every training goes on from its own epoch."""
    together = group(data, tmp_path / "together")
    assert train_together([together], 2, evaluate_every=2, deadline=time.monotonic() + 600)
    early = group(data, tmp_path / "apart")
    early.trainees.pop(0)
    assert train_together([early], 1, evaluate_every=5, deadline=time.monotonic() + 600)
    late = group(data, tmp_path / "apart")
    assert [trainee.completed for trainee in late.trainees] == [0, 1]
    assert train_together([late], 2, evaluate_every=2, deadline=time.monotonic() + 600)
    for ours, theirs in zip(late.trainees, together.trainees, strict=True):
        assert [epoch.epoch for epoch in ours.history] == [1, 2]
        assert ours.history[-1].top1 == theirs.history[-1].top1
        expected = theirs.model.state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in ours.model.state_dict().items())
    finished = group(data, tmp_path / "apart")
    assert train_together([finished], 2, evaluate_every=2, deadline=time.monotonic() + 600)
    assert [len(trainee.history) for trainee in finished.trainees] == [2, 2]


def test_class_weights_begin_when_the_recipe_says(data: LongTailedData, tmp_path: Path) -> None:
    settings = ["model=resnet8-bn", "loss.paths=compound", "loss.class_weights=inverse", "loss.class_weights_from=0.5"]
    plan = Plan("deferred", 0, apply_settings(RECIPES["digits-lt"], [*SETTINGS, *settings]))
    trainee = Trainee(plan, data, Execution(device=CPU), tmp_path / "state.pt")
    loader = training_loader(data, plan.recipe.views, batch_size=plan.recipe.schedule.batch_size, seed=0, device=CPU)
    made = Group(loader, [trainee])
    made.load_test(CPU)
    assert train_together([made], 2, evaluate_every=2, deadline=time.monotonic() + 600)
    train(plan.recipe, None, tmp_path / "alone", device="cpu")
    expected = load_state(tmp_path / "alone" / "last.pt").model
    assert all(torch.equal(value, expected[name]) for name, value in trainee.model.state_dict().items())


@pytest.mark.parametrize("setting", ["decoupled.share=0.5", "accumulate=2", "init_from=weights.pth"])
def test_what_is_not_done_here_is_refused(setting: str, data: LongTailedData, tmp_path: Path) -> None:
    plan = Plan("row", 0, apply_settings(RECIPES["digits-lt"], [*SETTINGS, setting]))
    with pytest.raises(RecipeError, match=rf"row has {setting.split('=')[0]}, .*; train it with cbn-train"):
        Trainee(plan, data, Execution(device=CPU), tmp_path / "state.pt")


def test_rows_that_want_other_batches_are_refused(data: LongTailedData, tmp_path: Path) -> None:
    other = Plan("balanced", 0, apply_settings(PLANS[0].recipe, ["sampling=class_balanced"]))
    made = group(data, tmp_path)
    stranger = Trainee(other, data, Execution(device=CPU), tmp_path / "other.pt")
    with pytest.raises(RecipeError, match="balanced and dual path differ in sampling"):
        Group(made.loader, [*made.trainees, stranger])


def test_a_history_that_is_shorter_than_its_state(data: LongTailedData, tmp_path: Path) -> None:
    made = group(data, tmp_path)
    assert train_together([made], 1, evaluate_every=5, deadline=time.monotonic() + 600)
    (tmp_path / "batch norm.json").write_text("[]")
    with pytest.raises(CheckpointError, match="stands at epoch 1 and its history at 0"):
        group(data, tmp_path)
    (tmp_path / "batch norm.json").write_text("[")
    with pytest.raises(CheckpointError, match="is damaged"):
        group(data, tmp_path)
