from __future__ import annotations

import json

import pytest

from cbn_deploy.data import long_tail_counts
from cbn_deploy.training.catalog import RECIPES, get_recipe
from cbn_deploy.training.comparison import compare
from cbn_deploy.training.experiments import EXPERIMENTS
from cbn_deploy.training.recipe import apply_settings

EPOCHS, MODEL = "epochs 20 instead of 400", "model resnet8 instead of resnet32"
CIFAR10 = long_tail_counts(5000, 100, 10)


def changed(name, *settings):
    return apply_settings(get_recipe(name), settings)


@pytest.mark.parametrize("recipe", EXPERIMENTS.values(), ids=lambda recipe: recipe.name)
def test_an_experiment_is_compared_with_itself(recipe):
    paper = compare(recipe, [1])
    assert paper.experiment == recipe.name
    assert len(paper.differences) == 1  # one image is not the published training set
    assert "1 training images instead of" in paper.differences[0]


def test_the_published_data_and_settings_leave_no_difference():
    paper = compare(get_recipe("cifar10-lt/rho100/cbn-sbn-dpl"), CIFAR10)
    assert paper.differences == ()
    assert [(row.source, row.top1) for row in paper.published] == [("Table 2", 0.8498), ("Table 4", 0.85)]
    assert paper.shown_in == (
        "Table 2: Baseline + CBN + SBN + DPL",
        "Table 4: Ours",
        "Figure 6: ResNet-32, the method",
    )
    assert {"TCM", "VS", "Baseline + CBN"} <= {row.method for row in paper.others}
    assert {row.data for row in paper.others} == {"cifar10-lt/rho100"}
    assert "norm.density_scale=rsqrt_channels" in paper.choices
    assert not any(choice.startswith("epochs") for choice in paper.choices)


@pytest.mark.parametrize(
    ("recipe", "experiment", "differences"),
    [
        (changed("cifar10-lt/rho100/cbn", "epochs=20"), "cbn", [EPOCHS]),
        (changed("cifar10-lt"), "cbn", []),
        (changed("cifar10-lt", "loss.paths=compound+split"), "cbn-sbn-dpl", []),
        (changed("cifar10-lt", "seed=7", "schedule.evaluate_every=9"), "cbn", []),
        (changed("cifar10-lt", "model=resnet32-bn", "loss.paths=compound"), "baseline", []),
        (changed("cifar10-lt", "model=resnet32-bn"), "baseline", []),
        (changed("cifar10-lt", "model=resnet32-bn", "loss.paths=two_views"), "bn-two-views", []),
        (changed("cifar10-lt/rho100/cbn-sbn-dpl", "loss.consistency_weight=0"), "cbn-sbn", []),
        (changed("cifar10-lt/rho100/cbn-sbn-dpl", "model=resnet8", "epochs=20"), "cbn-sbn-dpl", [MODEL, EPOCHS]),
        (changed("cifar10-lt", "views.cutout=0"), "cbn", ["views.cutout 0 instead of 16"]),
    ],
)
def test_the_nearest_experiment_and_what_differs(recipe, experiment, differences):
    paper = compare(recipe, CIFAR10)
    assert paper.experiment == f"cifar10-lt/rho100/{experiment}"
    assert list(paper.differences) == differences


def test_another_imbalance_is_another_column():
    paper = compare(changed("cifar10-lt", "rho=50"), long_tail_counts(5000, 50, 10))
    assert paper.experiment == "cifar10-lt/rho50/cbn"
    assert paper.differences == ()
    assert compare(changed("cifar10-lt", "rho=20"), CIFAR10) is None


def test_an_imbalance_that_the_paper_does_not_have_is_a_difference():
    paper = compare(changed("cifar10-lt/rho100/cbn", "rho=20"), long_tail_counts(5000, 20, 10))
    assert paper.experiment == "cifar10-lt/rho100/cbn"
    assert paper.differences == ("rho 20 instead of 100", "17,023 training images instead of 12,406")
    assert paper.published[0].top1 == 0.8412


@pytest.mark.parametrize("name", ["digits-lt", "image-folder"])
def test_data_that_the_paper_does_not_know_have_no_counterpart(name):
    assert compare(RECIPES[name], [10, 5]) is None


def test_what_we_chose_for_the_large_sets_is_said():
    paper = compare(get_recipe("places-lt/cbn-sbn-dpl"), [62_500])
    assert paper.differences == ()
    assert {"epochs=30", "batch_size=128", "lr=0.02"} <= set(paper.choices)
    assert not any("initialization" in choice for choice in paper.choices)
    afresh = compare(changed("places-lt/cbn-sbn-dpl", "init_from=none"), [62_500])
    assert "init_from none instead of resnet152-394f9c45.pth" in afresh.differences
    elsewhere = compare(changed("places-lt/cbn-sbn-dpl", "init_from=weights/other.pth"), [62_500])
    assert elsewhere.differences == ()


def test_plotted_and_own_experiments_have_no_figure():
    plotted = compare(get_recipe("cifar100-lt/rho100/m2"), long_tail_counts(500, 100, 100))
    assert plotted.shown_in == ("Figure 5: M = 2",)
    assert plotted.published == ()
    own = compare(get_recipe("cifar10-lt/rho100/bn-two-views"), CIFAR10)
    assert own.shown_in == own.published == ()


def test_it_goes_into_json():
    plain = compare(get_recipe("imagenet-lt/cbn-sbn-dpl"), [115_846]).to_dict()
    assert json.loads(json.dumps(plain))["published"][0]["top1"] == 0.574
