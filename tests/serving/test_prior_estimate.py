"""The estimated class frequencies, against the equations in plain loops and against frequencies that are known."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from serving.prior_estimate import PriorEstimator, estimate_prior
from tests.reference.tolerances import tolerance


def expectation_maximisation(probabilities: np.ndarray, model_prior: np.ndarray, rounds: int) -> np.ndarray:
    """Saerens et al. (2002), equation 2.9, one image and one class at a time, with one imaginary image a class."""
    images, classes = probabilities.shape
    prior = [1.0 / classes] * classes
    for _ in range(rounds):
        totals = [1.0] * classes
        for row in probabilities:
            weights = [row[k] * prior[k] / model_prior[k] for k in range(classes)]
            for k in range(classes):
                totals[k] += weights[k] / sum(weights)
        prior = [total / (images + classes) for total in totals]
    return np.array(prior)


def answers(images: int, prior: np.ndarray, model_prior: np.ndarray, seed: int = 0) -> np.ndarray:
    """What a perfect model, that assumes ``model_prior``, says of images from a world of class frequencies ``prior``.

    Class k is a Gaussian at position 1.5 k.
    """
    source = np.random.default_rng(seed)
    centres = 1.5 * np.arange(len(prior))
    x = centres[source.choice(len(prior), images, p=prior)] + source.normal(size=images)
    joint = np.exp(-0.5 * (x[:, None] - centres) ** 2) * model_prior
    return joint / joint.sum(1, keepdims=True)


def test_the_estimate_is_what_the_equations_give() -> None:
    model_prior = np.array([0.6, 0.3, 0.1])
    probabilities = answers(80, np.array([0.1, 0.2, 0.7]), model_prior)
    expected = expectation_maximisation(probabilities, model_prior, rounds=400)
    assert_allclose(estimate_prior(probabilities, model_prior), expected, atol=1e-5)
    assert_allclose(expected.sum(), 1.0, **tolerance("float64"))


@pytest.mark.parametrize("world", [(0.1, 0.2, 0.7), (1 / 3, 1 / 3, 1 / 3), (0.9, 0.05, 0.05)])
def test_the_frequencies_of_a_changed_world_are_found(world: tuple[float, ...]) -> None:
    model_prior = np.array([0.6, 0.3, 0.1])
    estimate = estimate_prior(answers(4000, np.array(world), model_prior), model_prior)
    assert np.abs(estimate - world).max() < 0.04
    naive = answers(4000, np.array(world), model_prior).mean(0)  # counting answers keeps the model's prejudice
    assert np.abs(estimate - world).sum() < np.abs(naive - world).sum() + 0.02


def test_no_class_is_excluded() -> None:
    certain = np.tile([1.0, 0.0, 0.0], (100, 1))
    assert_allclose(estimate_prior(certain, np.full(3, 1 / 3)), np.array([101, 1, 1]) / 103, rtol=1e-5)
    assert np.isfinite(estimate_prior(certain, np.array([0.0, 0.5, 0.5]))).all()


def test_an_estimator_says_nothing_before_it_has_seen_enough() -> None:
    model_prior = np.array([0.6, 0.3, 0.1])
    estimator = PriorEstimator(model_prior)
    rows = answers(64, np.array([0.1, 0.2, 0.7]), model_prior)
    estimator.observe(rows[:63])
    early = estimator.estimate()
    assert (early.images, early.needed, early.prior) == (63, 64, None)
    estimator.observe(rows[63:])
    estimate = estimator.estimate()
    assert estimate.images == 64
    assert estimate.prior is not None
    assert_allclose(estimate.prior, estimate_prior(rows.astype(np.float32), model_prior), rtol=1e-6)


def test_the_oldest_images_are_forgotten() -> None:
    model_prior = np.full(3, 1 / 3)
    estimator = PriorEstimator(model_prior)
    first, then = (
        answers(1500, np.array([0.8, 0.1, 0.1]), model_prior),
        answers(1200, np.array([0.1, 0.1, 0.8]), model_prior),
    )
    for row in first:
        estimator.observe(row[None])
    before = estimator.estimate().prior
    assert before is not None
    assert before.argmax() == 0
    estimator.observe(then)
    after = estimator.estimate()
    assert after.images == 1024
    assert after.prior is not None
    assert_allclose(after.prior, estimate_prior(then[-1024:].astype(np.float32), model_prior), rtol=1e-5)


def test_a_few_new_images_do_not_start_a_new_estimate() -> None:
    model_prior = np.full(3, 1 / 3)
    estimator = PriorEstimator(model_prior)
    estimator.observe(answers(320, np.array([0.8, 0.1, 0.1]), model_prior))
    first = estimator.estimate()
    estimator.observe(answers(19, np.array([0.1, 0.1, 0.8]), model_prior))
    assert estimator.estimate().prior is first.prior
    estimator.observe(answers(2, np.array([0.1, 0.1, 0.8]), model_prior))
    assert estimator.estimate().prior is not first.prior


@pytest.mark.parametrize(("classes", "needed", "remembered"), [(3, 64, 1024), (100, 200, 1024), (8142, 257, 257)])
def test_memory_is_bounded_for_any_number_of_classes(classes: int, needed: int, remembered: int) -> None:
    estimator = PriorEstimator(np.full(classes, 1 / classes))
    assert estimator.needed == needed
    for _ in range(3):
        estimator.observe(np.full((500, classes), 1 / classes))
    assert estimator.images == remembered
    assert 4 * classes * remembered <= 8 * 2**20
