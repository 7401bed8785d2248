from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from cbn_deploy.data import load_data, load_digits_lt
from cbn_deploy.errors import DataError
from cbn_deploy.runtime import ModelDescription, Preprocessing
from cbn_deploy.training import RECIPES, apply_settings
from cbn_deploy.training.artifacts import build_checkpoint
from cbn_deploy.training.test_set import doubt_about, find_test_set, find_training_set, recipe_test_set, with_seed_of
from tests.tiny_runs import TEST_IMAGES


def description(names, size=32):
    return ModelDescription(
        class_names=tuple(names),
        class_counts=(1,) * len(names),
        preprocessing=Preprocessing(height=size, width=size),
        architecture="resnet20",
        components=4,
        training_prior=(1 / len(names),) * len(names),
    )


DIGITS = description([str(digit) for digit in range(10)])
PHOTOS = description(("eight", "one", "zero"), size=16)
FOLDER = apply_settings(RECIPES["image-folder"], ["data.image_size=16", "views.cutout=4"])


def test_digits_by_name():
    images = find_test_set(DIGITS, "digits")
    np.testing.assert_array_equal(images.labels, load_digits_lt().test.labels)


def test_a_folder_with_a_test_folder(photos):
    assert np.bincount(find_test_set(PHOTOS, str(photos)).labels).tolist() == [TEST_IMAGES] * 3


@pytest.mark.parametrize("names", [("train", "test"), ("Train", "TEST")])
def test_training_images_by_the_names_that_training_knows(photos, tmp_path, names):
    for name, split in zip(names, ("train", "test"), strict=True):
        (tmp_path / name).symlink_to(photos / split)
    images, _ = find_training_set(PHOTOS, str(tmp_path))
    assert len(images) == 28
    with pytest.raises(DataError, match="has no training images"):
        find_training_set(PHOTOS, str(photos / "test"))


def test_a_folder_of_class_folders(photos):
    assert len(find_test_set(PHOTOS, str(photos / "test"))) == 3 * TEST_IMAGES


@pytest.mark.parametrize("kind", ["cifar10", "cifar100"])
def test_cifar_by_what_lies_there(shared_data, kind):
    with np.load(shared_data / f"{kind}-lt.npz") as pack:
        names = [str(name) for name in pack["class_names"]]
    assert len(find_test_set(description(names), str(shared_data))) == 10_000


@pytest.mark.parametrize("layout", ["test/{}", "{}"])
def test_cifar_as_pictures_is_a_folder_like_any_other(tmp_path, layout):
    folder, model = tmp_path / "cifar10", dataclasses.replace(DIGITS, class_counts=(5,) * 10)
    for name in DIGITS.class_names:
        picture = folder / layout.format(name) / "0.png"
        picture.parent.mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(picture)
    assert len(find_test_set(model, str(folder))) == 10


def test_a_recipe_splits_the_data_as_training_does(photos, tmp_path):
    recipe = FOLDER
    (tmp_path / "train").symlink_to(photos / "train")  # and no test folder: part of train is held out
    split = load_data(recipe.data, tmp_path)
    trained = dataclasses.replace(PHOTOS, class_counts=split.class_counts)
    held_out = recipe_test_set(trained, recipe, str(tmp_path))
    np.testing.assert_array_equal(held_out.labels, split.test.labels)
    with pytest.raises(DataError, match="training images only"):
        find_test_set(PHOTOS, str(tmp_path))


def names(images):
    return [images.name(index) for index in range(len(images))]


def trained_on_digits(*settings):
    """What `cbn-train digits-lt --set ...` writes into its model's description."""
    recipe = apply_settings(RECIPES["digits-lt"], settings)
    split = load_data(recipe.data)
    logits = np.zeros((len(split.test), 10), dtype=np.float32)
    return build_checkpoint(recipe, split, torch.nn.Linear(1, 1), logits).description, split


def test_digits_are_those_that_the_model_was_not_trained_on():
    model, split = trained_on_digits("data.seed=3", "rho=10")
    for images in (
        find_test_set(model, "digits"),
        recipe_test_set(model, with_seed_of(model, apply_settings(RECIPES["digits-lt"], ["rho=10"])), "digits"),
    ):
        assert names(images) == names(split.test)
    calibrating, _ = find_training_set(model, "digits")
    assert not set(names(calibrating)) & set(names(split.test))


def test_another_seed_than_that_of_the_training_is_refused():
    model, _ = trained_on_digits("data.seed=3")
    recipe = apply_settings(with_seed_of(model, RECIPES["digits-lt"]), ["data.seed=5"])
    with pytest.raises(DataError, match=r"trained with data\.seed=3; data\.seed=5 draws"):
        recipe_test_set(model, recipe, "digits")
    older = dataclasses.replace(model, data_seed=None)
    assert names(recipe_test_set(older, recipe, "digits")) == names(load_digits_lt(seed=5).test)
    assert names(find_test_set(older, "digits")) == names(load_digits_lt().test)


def test_another_split_than_that_of_the_training_is_refused(photos, tmp_path):
    """One image more and others are held out."""
    shutil.copytree(photos / "train", tmp_path / "train")
    trained = dataclasses.replace(PHOTOS, class_counts=load_data(FOLDER.data, tmp_path).class_counts)
    shutil.copy(tmp_path / "train" / "zero" / "0.png", tmp_path / "train" / "zero" / "added.png")
    with pytest.raises(DataError, match="has 5 training images of class 'zero' here, the model was trained on 4"):
        recipe_test_set(trained, FOLDER, str(tmp_path))


def test_a_flat_folder_with_more_images_than_were_trained_on_is_doubted(photos, tmp_path):
    shutil.copytree(photos / "train", tmp_path / "photos")
    folder = tmp_path / "photos"
    trained = dataclasses.replace(PHOTOS, class_counts=(11, 7, 4))  # of 14, 9 and 5 images
    shutil.copy(folder / "zero" / "0.png", folder / "zero" / "added.png")
    assert "as many images as the model was trained on" in doubt_about(
        trained, find_test_set(trained, str(folder)), str(folder)
    )
    (folder / "eight").rename(tmp_path / "eight")
    assert doubt_about(trained, find_test_set(trained, str(folder)), str(folder)) is None


def test_what_is_called_a_test_set_is_not_doubted(photos):
    for data in (photos, photos / "test"):
        assert doubt_about(PHOTOS, find_test_set(PHOTOS, str(data)), str(data)) is None
    assert doubt_about(DIGITS, find_test_set(DIGITS, "digits"), "digits") is None


def test_the_folder_that_was_trained_on_is_not_the_test_set(photos):
    """Classes without a train folder around them: as many images as were trained on and held out."""
    trained = dataclasses.replace(PHOTOS, class_counts=(11, 7, 4))  # of 14, 9 and 5 images
    with pytest.raises(DataError, match="--recipe image-folder"):
        find_test_set(trained, str(photos / "train"))
    assert len(find_test_set(PHOTOS, str(photos / "train"))) == 28


@pytest.mark.parametrize("seed", [0, 3])
def test_what_was_held_out_of_the_training_is_found_again(photos, tmp_path, seed):
    """With a train folder around the classes or without one, for testing and for calibration."""
    shutil.copytree(photos / "train", tmp_path / "train")
    config = dataclasses.replace(FOLDER.data, seed=seed)
    for folder in (tmp_path, tmp_path / "train"):
        data = load_data(config, folder)
        trained = dataclasses.replace(PHOTOS, class_counts=data.class_counts, data_seed=seed)
        assert names(find_test_set(trained, str(folder))) == names(data.test)
        assert names(find_training_set(trained, str(folder))[0]) == names(data.train)
        assert doubt_about(trained, find_test_set(trained, str(folder)), str(folder)) is None
    shutil.copy(tmp_path / "train" / "zero" / "0.png", tmp_path / "train" / "zero" / "added.png")
    with pytest.raises(DataError, match="training images only, and not as many of each class as the model was trained"):
        find_test_set(trained, str(tmp_path))


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        (PHOTOS, "digits", "are not those of digits-lt"),
        (PHOTOS, "/no/such/folder", "does not exist"),
        (dataclasses.replace(DIGITS, class_names=tuple("abcdefghij")), "digits", "are not those of digits-lt"),
    ],
)
def test_images_of_other_classes_are_refused(model, data, message):
    with pytest.raises(DataError, match=message):
        find_test_set(model, data)


def test_a_model_with_other_classes_refuses_a_folder(photos):
    with pytest.raises(DataError, match="does not know"):
        find_test_set(DIGITS, str(photos))
