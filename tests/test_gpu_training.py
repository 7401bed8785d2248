"""Trainings side by side (benchmarks/gpu/fleet.py) are cbn-train's: the same weights, in one go or resumed."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from benchmarks.gpu.fleet import Group, Plan, Trainee, train_together
from cbn_deploy.data import LongTailedData, load_data, training_loader
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
    with pytest.raises(ValueError, match="of another recipe"):
        Trainee(PLANS[1], data, Execution(device=CPU), tmp_path / "state.pt")
