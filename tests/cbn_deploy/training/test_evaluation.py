from __future__ import annotations

import json
import tracemalloc
import warnings

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from sklearn.metrics import balanced_accuracy_score, log_loss, recall_score, top_k_accuracy_score
from torchmetrics.functional.classification import multiclass_calibration_error

from cbn_deploy.training.evaluation import Confusion, evaluate_predictions, most_confused
from tests.reference.tolerances import tolerance

COUNTS = (500, 101, 100, 20, 19, 2)


@pytest.fixture
def predictions():
    rng = np.random.default_rng(11)
    labels = rng.integers(0, len(COUNTS), size=900)
    logits = rng.normal(scale=1.5, size=(900, len(COUNTS)))
    logits[np.arange(900), labels] += 1.5
    return logits.astype(np.float32), labels


def test_top1_and_recall_against_scikit_learn(predictions):
    logits, labels = predictions
    scores = evaluate_predictions(logits, labels, COUNTS)
    assert scores.top1 == pytest.approx(top_k_accuracy_score(labels, logits, k=1))
    expected = recall_score(labels, logits.argmax(1), average=None)
    np.testing.assert_allclose(scores.per_class, expected, **tolerance("float64"))


def test_groups_are_means_of_recalls_by_training_count(predictions):
    logits, labels = predictions
    scores = evaluate_predictions(logits, labels, COUNTS)
    recall = recall_score(labels, logits.argmax(1), average=None)
    assert scores.many == pytest.approx(recall[:2].mean())  # 101 is many, 100 is not
    assert scores.medium == pytest.approx(recall[2:4].mean())  # 20 is medium, 19 is not
    assert scores.few == pytest.approx(recall[4:].mean())


def test_calibration_error_against_torchmetrics(predictions):
    logits, labels = predictions
    expected = multiclass_calibration_error(
        torch.from_numpy(logits).double().softmax(1), torch.from_numpy(labels), num_classes=len(COUNTS), n_bins=15
    )
    actual = evaluate_predictions(logits, labels, COUNTS).ece
    assert actual > 0.01
    np.testing.assert_allclose(actual, expected.item(), **tolerance("calibration error"))


def test_calibration_error_of_the_shot_groups(predictions):
    """By the TRUE class: an image of a rare class that is taken for a frequent one counts for the rare."""
    logits, labels = predictions
    scores = evaluate_predictions(logits, labels, COUNTS)
    for actual, members in ((scores.many_ece, (0, 1)), (scores.medium_ece, (2, 3)), (scores.few_ece, (4, 5))):
        chosen = np.isin(labels, members)
        p = torch.from_numpy(logits[chosen]).double().softmax(1)
        expected = multiclass_calibration_error(p, torch.from_numpy(labels[chosen]), num_classes=len(COUNTS), n_bins=15)
        np.testing.assert_allclose(actual, expected.item(), **tolerance("calibration error"))


def test_balanced_accuracy_and_likelihood_against_scikit_learn(predictions):
    logits, labels = predictions
    unbalanced = labels <= 3  # and two classes without images
    logits, labels = logits[unbalanced][50:], labels[unbalanced][50:]
    scores = evaluate_predictions(logits, labels, COUNTS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a predicted class without images is no mistake here
        expected = balanced_accuracy_score(labels, logits.argmax(1))
    np.testing.assert_allclose(scores.balanced_accuracy, expected, **tolerance("float64"))
    p = torch.from_numpy(logits).double().softmax(1).numpy()
    expected = log_loss(labels, p, labels=range(len(COUNTS)))
    np.testing.assert_allclose(scores.nll, expected, **tolerance("float64"))


def test_intervals_against_scipy(predictions):
    logits, labels = predictions
    scores = evaluate_predictions(logits, labels, COUNTS)
    correct = logits.argmax(1) == labels
    for k, (images, ends) in enumerate(zip(scores.per_class_images, scores.per_class_interval, strict=True)):
        assert images == (labels == k).sum()
        expected = binomtest(int(correct[labels == k].sum()), images).proportion_ci(method="wilson")
        np.testing.assert_allclose(ends, tuple(expected), **tolerance("float64"))
        assert ends[0] < scores.per_class[k] < ends[1]
    expected = binomtest(int(correct.sum()), len(labels)).proportion_ci(method="wilson")
    np.testing.assert_allclose(scores.top1_interval, tuple(expected), **tolerance("float64"))


def test_a_single_class():
    scores = evaluate_predictions(np.zeros((3, 1)), np.zeros(3, int), (5,))
    assert (scores.top1, scores.balanced_accuracy, scores.few, scores.ece, scores.nll) == (1.0, 1.0, 1.0, 0.0, 0.0)


def test_everything_is_plain_json(predictions):
    logits, labels = predictions
    scores = evaluate_predictions(logits, labels, COUNTS)
    plain = json.loads(json.dumps(scores.to_dict(), allow_nan=False))
    assert list(plain)[:6] == ["top1", "many", "medium", "few", "per_class", "ece"]
    assert plain["per_class_interval"] == [list(ends) for ends in scores.per_class_interval]
    assert plain["classwise_ece"] == np.mean(scores.per_class_ece)


def test_certain_and_right_is_perfectly_calibrated():
    labels = np.array([0, 1, 2])
    scores = evaluate_predictions(np.eye(3) * 1e4, labels, (10, 10, 10))
    assert scores.top1 == 1.0
    assert scores.ece == 0.0


def test_certain_and_wrong_has_calibration_error_one():
    scores = evaluate_predictions(np.eye(3) * 1e4, np.array([1, 2, 0]), (10, 10, 10))
    assert scores.top1 == 0.0
    assert scores.ece == pytest.approx(1.0)


def test_absent_groups_and_classes_are_none_not_zero():
    logits = np.array([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    scores = evaluate_predictions(logits, np.array([0, 0]), (200, 150, 50))
    assert scores.per_class == (0.5, None, None)
    assert scores.many == 0.5  # the class without test images does not count as 0
    assert scores.medium is None
    assert scores.few is None
    assert (scores.per_class_images, scores.per_class_interval[1]) == ((2, 0, 0), None)
    assert (scores.balanced_accuracy, scores.medium_ece, scores.few_ece) == (0.5, None, None)
    assert scores.to_dict()["per_class"] == [0.5, None, None]


def test_most_confused_pairs_come_first():
    labels = np.array([0, 0, 0, 1, 1, 2])
    logits = np.eye(3)[[1, 1, 0, 0, 1, 2]]
    assert most_confused(logits, labels) == (
        Confusion(true=0, predicted=1, count=2),
        Confusion(true=1, predicted=0, count=1),
    )
    assert len(most_confused(logits, labels, limit=1)) == 1
    assert most_confused(np.eye(3), np.arange(3)) == ()


def test_ties_of_confused_pairs_are_in_class_order():
    labels = np.array([2, 1, 0, 1, 0, 2])
    logits = np.eye(3)[[0, 2, 2, 2, 1, 1]]
    pairs = [(pair.true, pair.predicted, pair.count) for pair in most_confused(logits, labels)]
    assert pairs == [(1, 2, 2), (0, 1, 1), (0, 2, 1), (2, 0, 1), (2, 1, 1)]


def test_confused_pairs_of_many_classes_take_little_memory():
    classes = 8142  # iNaturalist 2018: 66 million pairs, half a gigabyte of counts
    logits = np.zeros((2, classes), dtype=np.float32)
    logits[:, 7] = 1
    tracemalloc.start()
    try:
        assert most_confused(logits, np.array([8141, 8141])) == (Confusion(true=8141, predicted=7, count=2),)
        assert tracemalloc.get_traced_memory()[1] < 10**6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (np.zeros((2, 4)), np.zeros(2, int), "must be"),
        (np.zeros((2, 3)), np.zeros(3, int), "must be"),
        (np.zeros((0, 3)), np.zeros(0, int), "at least one"),
        (np.zeros((2, 3)), np.array([0, 3]), "labels must lie"),
        (np.zeros((2, 3)), np.array([-1, 0]), "labels must lie"),
        (np.full((2, 3), np.nan), np.zeros(2, int), "finite"),
    ],
)
def test_impossible_arguments_are_refused(logits, labels, message):
    with pytest.raises(ValueError, match=message):
        evaluate_predictions(logits, labels, (3, 2, 1))
