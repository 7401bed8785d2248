from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from cbn_deploy.data import load_digits_lt
from cbn_deploy.errors import DataError


def test_counts_are_long_tailed_and_the_test_is_balanced() -> None:
    data = load_digits_lt()
    assert data.class_counts == (130, 93, 66, 47, 34, 24, 17, 12, 9, 6)
    assert np.bincount(data.test.labels).tolist() == [40] * 10
    assert load_digits_lt(rho=1).class_counts == (130,) * 10


def test_train_and_test_share_no_image() -> None:
    data = load_digits_lt(rho=1)
    train = {data.train.name(i) for i in range(len(data.train))}
    test = {data.test.name(i) for i in range(len(data.test))}
    assert len(train) == 1300
    assert len(test) == 400
    assert not train & test


def test_images_are_the_real_digits_upscaled() -> None:
    data, original = load_digits_lt(), load_digits()
    for index in (0, 100, len(data.train) - 1):
        number = int(data.train.name(index).split()[1])
        pixels = data.train.pixels(index)
        assert pixels.shape == (32, 32, 3)
        assert pixels.dtype == np.uint8
        assert (pixels[..., 0] == pixels[..., 2]).all()
        assert data.train.labels[index] == original.target[number]
        # Averaging 4x4 blocks undoes the upscaling up to the filter's overshoot, which is clipped at black and white.
        blocks = pixels[..., 0].reshape(8, 4, 8, 4).mean(axis=(1, 3)) / 255 * 16
        assert np.corrcoef(blocks.ravel(), original.images[number].ravel())[0, 1] > 0.98


def test_seed_chooses_the_images() -> None:
    first, again, other = load_digits_lt(), load_digits_lt(), load_digits_lt(seed=1)
    names = [[data.test.name(i) for i in range(400)] for data in (first, again, other)]
    assert names[0] == names[1]
    assert names[0] != names[2]


def test_normalised_training_pixels_have_about_zero_mean_and_unit_deviation() -> None:
    data = load_digits_lt(rho=1)
    pixels = np.stack([data.train.pixels(i) for i in range(len(data.train))]) / 255
    assert pixels.mean() == pytest.approx(data.preprocessing.mean[0], abs=0.01)
    assert pixels.std() == pytest.approx(data.preprocessing.std[0], abs=0.01)


def test_classes_can_be_told_apart() -> None:
    data = load_digits_lt(rho=1)
    train = np.stack([data.train.pixels(i)[::4, ::4, 0].ravel() for i in range(len(data.train))])
    test = np.stack([data.test.pixels(i)[::4, ::4, 0].ravel() for i in range(len(data.test))])
    model = LogisticRegression(max_iter=500).fit(train / 255, data.train.labels)
    assert model.score(test / 255, data.test.labels) > 0.9


def test_a_rho_that_empties_the_tail_is_refused() -> None:
    with pytest.raises(DataError, match="use at most 130"):
        load_digits_lt(rho=131)
