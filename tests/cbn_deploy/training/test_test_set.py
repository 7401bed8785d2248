from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from cbn_deploy.data import load_data, load_digits_lt
from cbn_deploy.errors import DataError
from cbn_deploy.runtime import ModelDescription, Preprocessing
from cbn_deploy.training import RECIPES, apply_settings
from cbn_deploy.training.test_set import find_test_set, recipe_test_set
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


def test_digits_by_name():
    images = find_test_set(DIGITS, "digits")
    np.testing.assert_array_equal(images.labels, load_digits_lt().test.labels)


def test_a_folder_with_a_test_folder(photos):
    assert np.bincount(find_test_set(PHOTOS, str(photos)).labels).tolist() == [TEST_IMAGES] * 3


def test_a_folder_of_class_folders(photos):
    assert len(find_test_set(PHOTOS, str(photos / "test"))) == 3 * TEST_IMAGES


@pytest.mark.parametrize("kind", ["cifar10", "cifar100"])
def test_cifar_by_what_lies_there(shared_data, kind):
    with np.load(shared_data / f"{kind}-lt.npz") as pack:
        names = [str(name) for name in pack["class_names"]]
    assert len(find_test_set(description(names), str(shared_data))) == 10_000


def test_a_recipe_splits_the_data_as_training_does(photos, tmp_path):
    recipe = apply_settings(RECIPES["image-folder"], ["data.image_size=16", "views.cutout=4"])
    (tmp_path / "train").symlink_to(photos / "train")  # and no test folder: part of train is held out
    held_out = recipe_test_set(PHOTOS, recipe, str(tmp_path))
    np.testing.assert_array_equal(held_out.labels, load_data(recipe.data, tmp_path).test.labels)
    with pytest.raises(DataError, match="training images only"):
        find_test_set(PHOTOS, str(tmp_path))
    seeded = apply_settings(RECIPES["digits-lt"], ["data.seed=5"])
    np.testing.assert_array_equal(
        recipe_test_set(DIGITS, seeded, "digits").pixels(0), load_digits_lt(seed=5).test.pixels(0)
    )


def test_the_folder_that_was_trained_on_is_not_the_test_set(photos):
    """Classes without a train folder around them: as many images as were trained on and held out."""
    trained = dataclasses.replace(PHOTOS, class_counts=(11, 7, 4))  # of 14, 9 and 5 images
    with pytest.raises(DataError, match="--recipe image-folder"):
        find_test_set(trained, str(photos / "train"))
    assert len(find_test_set(PHOTOS, str(photos / "train"))) == 28


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
