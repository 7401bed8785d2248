"""Calibration errors against torchmetrics, which bins float32; in float64 against a loop over the bins."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import softmax
from torchmetrics.functional.classification import binary_calibration_error, multiclass_calibration_error

from cbn_deploy.training.metrics import class_wise_errors, judge, reliability
from tests.reference.tolerances import tolerance

CLASSES = 6


@pytest.fixture(scope="module")
def predictions():
    rng = np.random.default_rng(3)
    labels = rng.integers(0, CLASSES, size=700)
    logits = rng.normal(scale=2.0, size=(700, CLASSES))
    logits[np.arange(700), labels] += 1.0
    return logits, labels


def binned_error(confidence, correct, weights, bins):
    total = 0.0
    for b in range(bins):
        inside = (confidence > b / bins) & (confidence <= (b + 1) / bins)
        if inside.any():
            share = weights[inside].sum() / weights.sum()
            accuracy = np.average(correct[inside], weights=weights[inside])
            total += share * abs(accuracy - np.average(confidence[inside], weights=weights[inside]))
    return total


@pytest.mark.parametrize("bins", [1, 10, 15, 40])
def test_expected_calibration_error(predictions, bins):
    logits, labels = predictions
    outcomes = judge(logits, labels)
    actual = reliability(outcomes.confidence, outcomes.correct, bins=bins).error
    expected = multiclass_calibration_error(
        torch.from_numpy(softmax(logits, axis=1)), torch.from_numpy(labels), num_classes=CLASSES, n_bins=bins
    )
    np.testing.assert_allclose(actual, expected.item(), **tolerance("calibration error"))
    ones = np.ones(len(labels))
    expected = binned_error(outcomes.confidence, outcomes.correct, ones, bins)
    np.testing.assert_allclose(actual, expected, **tolerance("float64"))


def test_weighted(predictions):
    logits, labels = predictions
    outcomes = judge(logits, labels)
    weights = np.random.default_rng(0).random(len(labels))
    actual = reliability(outcomes.confidence, outcomes.correct, weights).error
    expected = binned_error(outcomes.confidence, outcomes.correct, weights, 15)
    np.testing.assert_allclose(actual, expected, **tolerance("float64"))


def test_class_wise_error_is_a_binary_one_for_every_class(predictions):
    logits, labels = predictions
    columns = torch.from_numpy(softmax(logits, axis=1)).t().contiguous()
    truth = torch.from_numpy(labels)
    expected = [binary_calibration_error(p, (truth == k).long(), n_bins=15).item() for k, p in enumerate(columns)]
    np.testing.assert_allclose(class_wise_errors(logits, labels), expected, **tolerance("calibration error"))


def test_blocks_of_rows_change_nothing(predictions, monkeypatch):
    logits, labels = predictions
    whole = class_wise_errors(logits, labels), judge(logits, labels)
    monkeypatch.setattr("cbn_deploy.training.metrics.outcomes._BLOCK_VALUES", 7 * CLASSES)
    np.testing.assert_allclose(class_wise_errors(logits, labels), whole[0], **tolerance("float64"))
    np.testing.assert_array_equal(judge(logits, labels).log_likelihood, whole[1].log_likelihood)


def test_the_diagram_of_a_known_case():
    diagram = reliability(np.array([0.55, 0.6, 0.95, 1.0]), np.array([True, False, True, True]), bins=10)
    assert diagram.weight == (0, 0, 0, 0, 0, 0.5, 0, 0, 0, 0.5)
    assert diagram.accuracy[5] == 0.5
    assert diagram.confidence[5] == pytest.approx(0.575)
    assert diagram.accuracy[0] is None
    assert diagram.error == pytest.approx(0.5 * 0.075 + 0.5 * 0.025)


def test_edges_belong_to_the_lower_bin_and_zero_to_the_first():
    diagram = reliability(np.array([0.0, 0.5, 1.0]), np.array([True, True, True]), bins=2)
    assert diagram.weight == pytest.approx((2 / 3, 1 / 3))
