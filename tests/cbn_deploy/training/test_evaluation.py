from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import recall_score, top_k_accuracy_score
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
    assert scores.to_dict()["per_class"] == [0.5, None, None]


def test_most_confused_pairs_come_first():
    labels = np.array([0, 0, 0, 1, 1, 2])
    logits = np.eye(3)[[1, 1, 0, 0, 1, 2]]
    assert most_confused(logits, labels) == (
        Confusion(true=0, predicted=1, count=2),
        Confusion(true=1, predicted=0, count=1),
    )
    assert len(most_confused(logits, labels, limit=1)) == 1


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
