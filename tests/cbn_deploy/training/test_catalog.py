from __future__ import annotations

import json

import pytest

from cbn_deploy.errors import RecipeError
from cbn_deploy.models import create_model
from cbn_deploy.training.catalog import RECIPES, find_sections, get_recipe, known_names
from cbn_deploy.training.experiments import ALIASES, EXPERIMENTS, SECTIONS
from cbn_deploy.training.recipe import Recipe, apply_settings, setting_help

COLUMNS = [f"cifar{classes}-lt/rho{rho}" for classes in (10, 100) for rho in (100, 50, 10)]
CLASSES = {
    "cifar10-lt": 10,
    "cifar100-lt": 100,
    "imagenet-lt": 1000,
    "places-lt": 365,
    "inaturalist2018": 8142,
}


def rows(title):
    return [row for section in SECTIONS if section.title == title for row in section.rows]


@pytest.mark.parametrize(
    ("title", "count"),
    [
        ("Table 2", 30),
        ("Table 3", 8),
        ("Table 4", 6),
        ("Table 5", 1),
        ("Table 6", 1),
        ("Table 7", 1),
        ("Figure 5", 8),
        ("Figure 6", 10),
    ],
)
def test_every_experiment_of_section_4_has_a_name(title, count):
    names = [row.name for row in rows(title)]
    assert len(set(names)) == count
    assert all(get_recipe(name) in EXPERIMENTS.values() for name in names)


def test_every_experiment_is_listed():
    listed = {ALIASES.get(row.name, row.name) for section in SECTIONS for row in section.rows}
    assert listed == set(EXPERIMENTS)
    assert len(known_names()) == len(set(known_names()))


@pytest.mark.parametrize("recipe", EXPERIMENTS.values(), ids=lambda recipe: recipe.name)
def test_every_experiment_survives_a_file_and_has_an_architecture(recipe):
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    architecture = recipe.architecture(CLASSES[recipe.data.source])
    assert architecture.name == recipe.model
    assert recipe.name.startswith(recipe.data.source)
    assert f"rho{recipe.data.rho}" in recipe.name or recipe.data.rho is None


@pytest.mark.parametrize("recipe", EXPERIMENTS.values(), ids=lambda recipe: recipe.name)
def test_every_listed_setting_can_be_typed_back(recipe):
    listed = [f"{key}={value}" for key, value, _ in setting_help(recipe)]
    assert apply_settings(recipe, listed) == recipe


@pytest.mark.parametrize("name", ["sbn", "cbn", "cbn-sbn-dpl", "baseline-dt-rw", "m8"])
def test_networks_of_every_kind_can_be_built(name):
    recipe = get_recipe(f"cifar100-lt/rho100/{name}")
    model = create_model(recipe.architecture(100), [1] * 100)
    tables = {tuple(p.shape) for n, p in model.named_parameters() if n.endswith("bn1.weight")}
    components = recipe.norm.components
    assert ((16,) if recipe.is_batch_norm else (components, 16)) in tables
    assert any(".split." in n for n, _ in model.named_parameters()) == (name == "sbn")


@pytest.mark.parametrize("column", COLUMNS)
def test_the_rows_of_table_2_differ_as_the_paper_says(column):
    baseline, sbn, cbn, cbn_sbn, full = (
        get_recipe(f"{column}/{name}") for name in ("baseline", "sbn", "cbn", "cbn-sbn", "cbn-sbn-dpl")
    )
    assert baseline.is_batch_norm
    assert not any(recipe.is_batch_norm for recipe in (sbn, cbn, cbn_sbn, full))
    assert [recipe.dual_path for recipe in (baseline, sbn, cbn, cbn_sbn, full)] == [False, True, False, True, True]
    assert [recipe.two_views for recipe in (baseline, sbn, cbn, cbn_sbn, full)] == [False] * 4 + [True]
    assert (sbn.norm.components, sbn.norm.groups) == (1, 4)
    assert {recipe.norm.components for recipe in (cbn, cbn_sbn, full)} == {4}
    for recipe in (baseline, sbn, cbn, cbn_sbn, full):
        assert (recipe.schedule.epochs, recipe.schedule.batch_size, recipe.optimizer.lr) == (400, 128, 0.05)
        assert recipe.loss.classification == "balanced_softmax"
        assert recipe.views.autoaugment
        assert f"{recipe.data.source}/rho{recipe.data.rho}" == column


def test_the_control_shares_the_views_and_the_consistency_but_not_the_layer():
    control, full = get_recipe("cifar10-lt/rho100/bn-two-views"), get_recipe("cifar10-lt/rho100/cbn-sbn-dpl")
    assert control.is_batch_norm
    assert control.two_views
    assert not control.dual_path
    assert control.loss.consistency_weight == full.loss.consistency_weight


def test_figures_5_and_6_change_one_thing():
    for components in range(1, 9):
        recipe = get_recipe(f"cifar100-lt/rho100/m{components}")
        assert recipe.norm.components == components
        assert recipe.two_views
    for depth in (20, 32, 44, 56, 110):
        stem = f"cifar10-lt/rho100/resnet{depth}"
        assert get_recipe(f"{stem}/baseline").model == f"resnet{depth}-bn"
        assert get_recipe(f"{stem}/cbn-sbn-dpl").model == f"resnet{depth}"


def test_table_3_treats_the_classifier_alone_in_the_last_fifth():
    for first in ("baseline", "cbn"):
        for kind, sampled, weighted in (("rs", True, False), ("rw", False, True), ("rw-rs", True, True)):
            recipe = get_recipe(f"cifar100-lt/rho100/{first}-dt-{kind}")
            assert recipe.decoupled.classifier_epochs(recipe.schedule.epochs) == 80
            assert (recipe.decoupled.sampling == "class_balanced") == sampled
            assert (recipe.decoupled.class_weights != "none") == weighted
            assert recipe.sampling == "instance_balanced"
            assert recipe.loss.class_weights == "none"
            assert recipe.is_batch_norm == (first == "baseline")
            assert not recipe.dual_path


def test_the_large_sets_have_the_papers_networks():
    models = {name: get_recipe(f"{name}/cbn-sbn-dpl").model for name in ("imagenet-lt", "places-lt", "inaturalist2018")}
    assert models == {"imagenet-lt": "resnet50", "places-lt": "resnet152", "inaturalist2018": "resnet50"}
    assert get_recipe("places-lt/cbn-sbn-dpl").init_from is not None
    assert get_recipe("places-lt/baseline").init_from is not None
    assert get_recipe("imagenet-lt/cbn-sbn-dpl").init_from is None


def test_an_alias_is_the_same_experiment():
    assert get_recipe("cifar100-lt/rho100/m4") is get_recipe("cifar100-lt/rho100/cbn-sbn-dpl")
    assert get_recipe("cifar10-lt/rho100/resnet32/baseline") is get_recipe("cifar10-lt/rho100/baseline")


@pytest.mark.parametrize(
    ("pattern", "titles", "count"),
    [
        ("table 5", {"Table 5"}, 1),
        ("TABLE 2", {"Table 2"}, 30),
        ("cifar10-lt/*/cbn", {"Table 2"}, 3),
        ("bn-two-views", {"Controls"}, 6),
        ("resnet110", {"Figure 6"}, 2),
        ("places", {"Table 6", "Controls"}, 2),
        ("rho10", {"Table 2", "Table 4", "Controls"}, 14),
        ("cifar100-lt/rho10", {"Table 2", "Table 4", "Controls"}, 7),
        ("cbn-dt", {"Table 3"}, 3),
        ("nothing", set(), 0),
    ],
)
def test_patterns_find_names_and_tables(pattern, titles, count):
    found = find_sections(pattern)
    assert {section.title for section in found} == titles
    assert sum(len(section.rows) for section in found) == count


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("cifar10-lt/rho100/cbn-spn-dpl", "cifar10-lt/rho100/cbn-sbn-dpl"),
        ("CIFAR100-LT/rho100/m3", "cifar100-lt/rho100/m3"),
        ("inat2018/baseline", "inaturalist2018/baseline"),
        ("cifar10lt", "cifar10-lt"),
    ],
)
def test_a_near_miss_names_what_was_meant(name, near):
    with pytest.raises(RecipeError, match="There is no recipe") as caught:
        get_recipe(name)
    assert repr(near) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_four_to_start_from_stay():
    assert list(RECIPES) == ["digits-lt", "cifar10-lt", "cifar100-lt", "image-folder"]


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if not name.startswith("cifar")])
def test_large_photographs_have_the_policy_that_was_found_on_them(name):
    assert (get_recipe(name).views.policy, get_recipe(name).data.image_size) == ("imagenet", 224)
    with pytest.raises(RecipeError, match=r"views\.policy has no effect here, views\.autoaugment is false"):
        apply_settings(get_recipe(name), ["views.autoaugment=false", "views.policy=cifar10"])
