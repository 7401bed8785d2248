from __future__ import annotations

import json

import pytest

from cbn_deploy.errors import RecipeError
from cbn_deploy.models import MODEL_NAMES
from cbn_deploy.training.catalog import RECIPES, get_recipe
from cbn_deploy.training.recipe import SHORT_KEYS, Recipe, apply_settings, setting_help

DIGITS = RECIPES["digits-lt"]


def test_the_promised_recipes_and_keys_exist():
    assert list(RECIPES) == ["digits-lt", "cifar10-lt", "cifar100-lt", "image-folder"]
    assert set(SHORT_KEYS) >= {"model", "components", "epochs", "batch_size", "lr", "seed", "rho", "statistics"}


@pytest.mark.parametrize("name", ["cifar10-lt", "cifar100-lt"])
def test_cifar_is_the_papers_setting(name):
    recipe = RECIPES[name]
    assert (recipe.model, recipe.norm.components) == ("resnet32", 4)
    assert (recipe.schedule.batch_size, recipe.schedule.epochs) == (128, 400)
    assert (recipe.optimizer.lr, recipe.optimizer.momentum, recipe.optimizer.weight_decay) == (0.05, 0.9, 5e-4)
    assert recipe.views.flip
    assert recipe.views.autoaugment
    assert recipe.loss.paths == "compound"  # the paper's own rows have both


def test_digits_are_never_mirrored():
    assert not DIGITS.views.flip


@pytest.mark.parametrize(
    ("setting", "read"),
    [
        ("model=resnet56", lambda r: r.model == "resnet56"),
        ("components=6", lambda r: r.norm.components == 6),
        ("epochs=3", lambda r: r.schedule.epochs == 3),
        ("batch_size=64", lambda r: r.schedule.batch_size == 64),
        ("lr=1e-2", lambda r: r.optimizer.lr == 0.01),
        ("seed=7", lambda r: r.seed == 7),
        ("rho=10", lambda r: r.data.rho == 10.0),
        ("rho=none", lambda r: r.data.rho is None),
        ("statistics=algorithm2", lambda r: r.norm.statistics == "algorithm2"),
        ("norm.density_scale=joint", lambda r: r.norm.density_scale == "joint"),
        ("norm.density_scale=0.25", lambda r: r.norm.density_scale == 0.25),
        ("norm.posterior_gradient=no", lambda r: r.norm.posterior_gradient is False),
        ("loss.paths=compound", lambda r: r.loss.paths == "compound" and not r.dual_path),
        ("loss.consistency_weight=0", lambda r: r.dual_path and not r.two_views),
        (" lr = 0.1 ", lambda r: r.optimizer.lr == 0.1),
    ],
)
def test_settings_change_what_they_say(setting, read):
    changed = apply_settings(DIGITS, [setting])
    assert read(changed)
    assert Recipe.from_dict(json.loads(json.dumps(changed.to_dict()))) == changed


def test_settings_are_applied_together_and_the_last_of_one_key_counts():
    sizes = ["data.image_size=96", "data.resize_shorter=112", "epochs=4", "schedule.warmup_epochs=3", "lr=1", "lr=2"]
    for order in (sizes, [*sizes[3::-1], *sizes[4:]]):
        recipe = apply_settings(RECIPES["image-folder"], order)
        assert (recipe.data.image_size, recipe.data.resize_shorter) == (96, 112)
        assert recipe.schedule.warmup_epochs == 3
        assert recipe.optimizer.lr == 2.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["lrr=1"], "did you mean 'lr'"),
        (["component=1"], "did you mean 'components'"),
        (["norm.density=1"], "did you mean 'norm.density_scale'"),
        (["name=x"], "no setting 'name'"),
        (["data.source=digits-lt"], "no setting 'data.source'"),
        (["norm=4"], "no setting 'norm'"),
        (["lr"], "key=value"),
        (["=3"], "key=value"),
        (["lr="], "lr must be a number"),
        (["lr=fast"], "lr must be a number, got 'fast'"),
        (["lr=nan"], "lr must be a number"),
        (["lr=inf"], "lr must be a number"),
        (["lr=-1"], "lr must be above 0"),
        (["epochs=2.5"], "epochs must be a whole number"),
        (["epochs=0"], "epochs must be at least 1"),
        (["batch_size=1"], "batch_size must be at least 2"),
        (["seed=-1"], "seed must be"),
        (["components=0"], "components must be at least 1"),
        (["rho=0.5"], "rho must be at least 1"),
        (["rho=all"], "rho must be a number or none"),
        (["statistics=em"], "one of batch_em, algorithm2, update_then_read"),
        (["norm.posterior_gradient=maybe"], "true or false"),
        (["model=resnet32b"], "did you mean 'resnet32'"),
        (["loss.split_weight=-1"], "split_weight must be at least 0"),
        (["schedule.warmup_epochs=99"], "warmup_epochs must be in"),
        (["model=resnet20-bn", "components=2"], "norm.components has no effect here, resnet20-bn is a batch-norm"),
        (
            ["model=resnet20-bn", "loss.paths=compound+split"],
            "loss.paths has no effect here, resnet20-bn is a batch-norm",
        ),
        (["loss.paths=compound", "loss.split_weight=2"], "only one path is trained"),
        (["data.image_size=64"], "no effect"),
        (["views.min_area=0.5"], "no effect"),
        (["views.cutout=32"], "views.cutout=32 can hide all of an image of data.image_size=32 pixels"),
    ],
)
def test_bad_settings_get_one_sentence_that_names_them(settings, message):
    with pytest.raises(RecipeError) as caught:
        apply_settings(DIGITS, settings)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_cutout_must_fit_images_that_were_made_smaller():
    with pytest.raises(RecipeError, match=r"cutout=16 can hide all of an image of data\.image_size=16"):
        apply_settings(RECIPES["image-folder"], ["data.image_size=16"])
    assert apply_settings(RECIPES["image-folder"], ["data.image_size=16", "views.cutout=8"]).views.cutout == 8


def test_an_unknown_recipe_names_the_nearest():
    with pytest.raises(RecipeError, match="did you mean 'digits-lt'"):
        get_recipe("digit-lt")


def test_batch_norm_twins_train_one_path_with_the_strong_view():
    recipe = apply_settings(DIGITS, ["model=resnet20-bn"])
    assert not recipe.dual_path
    assert not recipe.two_views
    assert recipe.architecture(10).norm is None
    assert not any(key.startswith("norm.") for key in recipe.used_settings())
    assert recipe.used_settings()["loss.paths"] == "compound"
    listed = [f"{key}={value}" for key, value, _ in setting_help(recipe)]
    assert apply_settings(recipe, listed).effective() == recipe.effective()


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_every_model_can_be_set(name):
    assert apply_settings(DIGITS, [f"model={name}"]).architecture(10).name == name


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=lambda recipe: recipe.name)
def test_every_listed_setting_can_be_typed_back(recipe):
    listed = [f"{key}={value}" for key, value, _ in setting_help(recipe)]
    assert apply_settings(recipe, listed).effective() == recipe.effective()


def test_a_recipe_that_knows_fewer_settings_than_this_version_has_their_defaults():
    plain = DIGITS.to_dict()
    for key in ("init_from", "sampling", "decoupled"):
        del plain[key]
    assert Recipe.from_dict(plain) == DIGITS


def test_a_recipe_from_elsewhere_is_checked():
    plain = DIGITS.to_dict()
    with pytest.raises(RecipeError, match="unknown key 'extra'"):
        Recipe.from_dict({**plain, "extra": 1})
    with pytest.raises(RecipeError, match="incomplete"):
        Recipe.from_dict({key: value for key, value in plain.items() if key != "data"})
    with pytest.raises(RecipeError, match="epochs must be at least 1"):
        Recipe.from_dict({**plain, "schedule": {**plain["schedule"], "epochs": 0}})
    with pytest.raises(RecipeError, match="5 stands where there should be settings"):
        Recipe.from_dict({**plain, "data": 5})
