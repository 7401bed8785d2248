"""Weights against the drawing that they stand for, and Bayes' rule against a problem whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax

from cbn_deploy.data import long_tail_counts
from cbn_deploy.training.metrics import evaluate_prior_shift, judge, reliability, shifted_prior
from tests.reference.tolerances import tolerance

COUNTS = (10, 500, 60, 3, 120)
CLASSES = len(COUNTS)
ORDER = np.argsort(COUNTS)[::-1]


def draw(images_a_class, seed=0):
    """A balanced test set of Gaussian classes; the logits are exact for the uniform prior."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(CLASSES), images_a_class)
    x = 1.3 * np.eye(CLASSES)[labels] + rng.normal(size=(len(labels), CLASSES))
    return 1.3 * x, labels


def by_name(scores):
    return {(score.direction, score.ratio): score for score in scores}


def test_the_priors_are_those_of_the_protocol():
    names = [(s.direction, s.ratio) for s in evaluate_prior_shift(*draw(4), COUNTS, np.full(CLASSES, 0.2))]
    assert names == [
        *(("forward", r) for r in (50, 25, 10, 5, 2)),
        ("uniform", 1),
        *(("backward", r) for r in (2, 5, 10, 25, 50)),
    ]
    forward = shifted_prior(COUNTS, 50, "forward")
    counts = np.array(long_tail_counts(10**6, 50, CLASSES), dtype=float)
    np.testing.assert_allclose(forward[ORDER], counts / counts.sum(), rtol=1e-4)
    np.testing.assert_allclose(shifted_prior(COUNTS, 50, "backward")[ORDER], forward[ORDER][::-1])
    assert forward.argmax() == 1  # 500 training images
    assert forward.max() / forward.min() == pytest.approx(50)
    np.testing.assert_allclose(shifted_prior(COUNTS, 1, "uniform"), 0.2)
    np.testing.assert_allclose(shifted_prior((7,), 50, "forward"), [1.0])
    with pytest.raises(ValueError, match="ratio"):
        shifted_prior(COUNTS, 0.5, "forward")


def test_weighting_is_the_mean_of_many_drawn_test_sets():
    logits, labels = draw(60)
    score = by_name(evaluate_prior_shift(logits, labels, COUNTS, np.full(CLASSES, 0.2)))["backward", 5]
    # 60 images of the rarest class down to 12 of the most frequent one, whole numbers at every rank or nearly
    per_class = np.empty(CLASSES, dtype=int)
    per_class[ORDER[::-1]] = np.rint(60 * 5.0 ** (-np.arange(CLASSES) / (CLASSES - 1)))
    rng = np.random.default_rng(1)
    correct = logits.argmax(1) == labels
    drawn = [
        np.concatenate(
            [rng.choice(correct[labels == k], size=per_class[k], replace=False) for k in range(CLASSES)]
        ).mean()
        for _ in range(4000)
    ]
    assert score.top1 == pytest.approx(np.mean(drawn), abs=0.002)


def test_top1_is_the_priors_mean_of_the_recalls_and_ece_its_weighted_form():
    logits, labels = draw(40)
    logits, labels = logits[5:], labels[5:]  # unequal classes
    model_prior = np.array([0.05, 0.6, 0.2, 0.05, 0.1])
    recalls = np.array([(logits[labels == k].argmax(1) == k).mean() for k in range(CLASSES)])
    for name, score in by_name(evaluate_prior_shift(logits, labels, COUNTS, model_prior)).items():
        prior = shifted_prior(COUNTS, name[1], name[0])
        np.testing.assert_allclose(score.top1, prior @ recalls, **tolerance("float64"))
        corrected = softmax(logits, axis=1) / model_prior * prior  # Bayes' rule, not logarithms
        corrected /= corrected.sum(axis=1, keepdims=True)
        hits = np.array([(corrected[labels == k].argmax(1) == k).mean() for k in range(CLASSES)])
        np.testing.assert_allclose(score.corrected_top1, prior @ hits, **tolerance("float64"))
        weights = (prior / np.bincount(labels))[labels]
        outcomes = judge(logits, labels)
        expected = reliability(outcomes.confidence, outcomes.correct, weights).error
        np.testing.assert_allclose(score.ece, expected, **tolerance("float64"))


def test_correction_is_worth_most_where_the_prior_differs_most_and_calibrates():
    logits, labels = draw(8000, seed=2)
    tail = np.array(COUNTS) / sum(COUNTS)
    scores = by_name(evaluate_prior_shift(logits + np.log(tail), labels, COUNTS, tail))
    gains = [
        scores[name].corrected_top1 - scores[name].top1 for name in (("forward", 50), ("uniform", 1), ("backward", 50))
    ]
    assert gains[0] < gains[1] < gains[2]
    assert gains[2] > 0.2
    assert all(score.corrected_ece < 0.02 for score in scores.values())  # these posteriors are exact
    assert scores["backward", 50].ece > 0.2


def test_a_balanced_model_needs_no_correction_for_balanced_images():
    score = by_name(evaluate_prior_shift(*draw(50), COUNTS, np.full(CLASSES, 0.2)))["uniform", 1]
    assert score.top1 == score.corrected_top1
    assert score.ece == pytest.approx(score.corrected_ece)


def test_a_class_without_images_leaves_its_weight_to_the_others():
    logits, labels = draw(50)
    present = labels != 1
    prior = shifted_prior(COUNTS, 10, "forward")
    scores = by_name(evaluate_prior_shift(logits[present], labels[present], COUNTS, np.full(CLASSES, 0.2)))
    recalls = np.array([(logits[labels == k].argmax(1) == k).mean() for k in range(CLASSES)])
    others = np.arange(CLASSES) != 1
    assert scores["forward", 10].top1 == pytest.approx(prior[others] @ recalls[others] / prior[others].sum())


def test_the_correction_is_for_the_prior_that_is_weighted():
    """Exact posteriors, the two rarest classes without images: Bayes' rule over the classes that can come."""
    logits, labels = draw(2000, seed=3)
    come = np.isin(labels, ORDER[:3])
    logits, labels = logits[come], labels[come]
    for name, score in by_name(evaluate_prior_shift(logits, labels, COUNTS, np.full(CLASSES, 0.2))).items():
        prior = shifted_prior(COUNTS, name[1], name[0])[ORDER[:3]]
        prior /= prior.sum()
        posterior = softmax(logits[:, ORDER[:3]], axis=1) * prior
        posterior /= posterior.sum(axis=1, keepdims=True)
        hits = ORDER[:3][posterior.argmax(axis=1)] == labels
        weights = (prior / 2000)[np.argsort(ORDER)[labels]]
        np.testing.assert_allclose(score.corrected_top1, weights @ hits, **tolerance("float64"))
        expected = reliability(posterior.max(axis=1), hits, weights).error
        np.testing.assert_allclose(score.corrected_ece, expected, **tolerance("float64"))
        assert score.corrected_top1 > score.top1 - 0.01  # Bayes' rule loses to nothing but luck
        assert score.corrected_ece < 0.03


def test_impossible_arguments():
    with pytest.raises(ValueError, match="finite"):
        evaluate_prior_shift(np.full((1, CLASSES), np.inf), np.array([0]), COUNTS, np.full(CLASSES, 0.2))
