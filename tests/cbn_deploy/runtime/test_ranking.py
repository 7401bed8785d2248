"""The ranking's numbers, against torch and Bayes' rule written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from cbn_deploy.runtime.probabilities import correct_prior, log_softmax
from cbn_deploy.runtime.ranking import parse_prior, rank
from tests.onnx_models import describe
from tests.reference.tolerances import tolerance

DESCRIPTION = describe()


@settings(deadline=None)  # the first example imports torch
@given(st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=20))
def test_log_softmax_matches_torch(logits: list[float]) -> None:
    torch = pytest.importorskip("torch")
    z = torch.tensor(logits, dtype=torch.float64)
    assert_allclose(log_softmax(np.array(logits)), torch.log_softmax(z, 0).numpy(), **tolerance("float64"))


def test_prior_correction_is_bayes_rule() -> None:
    likelihood = np.array([0.2, 0.5, 0.9])  # p(x|y)
    model_prior, target_prior = np.array([0.7, 0.2, 0.1]), np.array([0.1, 0.3, 0.6])
    logits = np.log(likelihood * model_prior) + 3.7  # softmax(logits) is the posterior under the model's prior
    expected = likelihood * target_prior / (likelihood * target_prior).sum()
    actual = np.exp(log_softmax(correct_prior(logits, model_prior, target_prior)))
    assert_allclose(actual, expected, **tolerance("float64"))


def test_a_balanced_model_is_unchanged_by_a_uniform_prior_and_tilted_by_the_training_one() -> None:
    likelihood = np.array([0.2, 0.5, 0.9])
    balanced = np.full(3, 1 / 3)
    logits = np.log(likelihood)  # what a balanced softmax learns: no class frequency in it
    uniform = correct_prior(logits, balanced, parse_prior("uniform", DESCRIPTION))
    assert_allclose(log_softmax(uniform), log_softmax(logits), **tolerance("float64"))
    train = np.exp(log_softmax(correct_prior(logits, balanced, parse_prior("train", DESCRIPTION))))
    frequencies = np.array([150, 40, 10]) / 200
    assert_allclose(train, likelihood * frequencies / (likelihood * frequencies).sum(), **tolerance("float64"))


def test_a_model_that_assumes_its_training_prior_is_unchanged_by_it() -> None:
    logits = np.array([1.0, -2.0, 0.5])
    model_prior = parse_prior("train", DESCRIPTION)
    same = correct_prior(logits, model_prior, parse_prior("train", DESCRIPTION))
    assert_allclose(log_softmax(same), log_softmax(logits), **tolerance("float64"))


def test_a_class_the_model_never_saw_is_not_made_certain() -> None:
    corrected = correct_prior(np.zeros(3), np.array([0.8, 0.2, 0.0]), np.full(3, 1 / 3))
    assert np.isfinite(corrected).all()
    assert corrected[2] == corrected[1]


def test_a_target_of_zero_excludes_its_class() -> None:
    prior = parse_prior('{"red": 0.5, "blue": 0.5}', DESCRIPTION)
    ranking = rank(correct_prior(np.array([0.0, 9.0, 1.0]), np.full(3, 1 / 3), prior), DESCRIPTION, 3)
    assert [(line.label, line.probability > 0) for line in ranking] == [("blue", True), ("red", True), ("green", False)]


def test_rank_is_ordered_complete_and_stable() -> None:
    ranking = rank(np.array([1.0, 2.0, 2.0]), DESCRIPTION, 10)
    assert [line.index for line in ranking] == [1, 2, 0]
    assert [line.label for line in ranking] == ["green", "blue", "red"]
    assert [line.shot_group for line in ranking] == ["medium", "few", "many"]
    assert math.isclose(sum(line.probability for line in ranking), 1.0)
    assert rank(np.array([1.0, 2.0, 2.0]), DESCRIPTION, 1) == ranking[:1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("uniform", [1 / 3, 1 / 3, 1 / 3]),
        ("train", [0.75, 0.2, 0.05]),
        ('{"red": 0.9}', [0.9, 0.05, 0.05]),
        ('{"red": 1}', [1, 0, 0]),
        ('{"red": 0.2, "green": 0.3, "blue": 0.5}', [0.2, 0.3, 0.5]),
        ('{"red": 0}', [0, 0.5, 0.5]),
    ],
)
def test_parse_prior(text: str, expected: list[float]) -> None:
    assert_allclose(parse_prior(text, DESCRIPTION), expected, **tolerance("float64"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Train",
        "{",
        "[]",
        "[0.5, 0.5]",
        "{}",
        "1",
        "null",
        '{"cat": 0.5}',
        '{"red": "0.5"}',
        '{"red": -0.1}',
        '{"red": 1.1}',
        '{"red": NaN}',
        '{"red": 1e999}',
        '{"red": true}',
        '{"red": null}',
        '{"red": 0.9, "green": 0.9}',
        '{"red": 0.1, "green": 0.1, "blue": 0.1}',
        "[" * 10_000,
    ],
)
def test_parse_prior_refuses(text: str) -> None:
    with pytest.raises(ValueError, match=r"^prior"):
        parse_prior(text, DESCRIPTION)


def test_train_prior_without_counts_says_so() -> None:
    with pytest.raises(ValueError, match="training counts"):
        parse_prior("train", describe(class_counts=(0, 0, 0)))
