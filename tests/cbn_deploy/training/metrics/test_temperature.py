"""The fitted temperature against other optimisers, and what fitting must not do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.linear_model import LogisticRegression
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_calibration_error

from cbn_deploy.training.metrics import calibrate, fit_temperature, split_halves
from tests.reference.tolerances import tolerance

CLASSES = 5
UNIFORM = np.full(CLASSES, 1 / CLASSES)


def draw(images, true_temperature, seed=0, prior=UNIFORM):
    """Logits whose ``softmax(z / true_temperature)`` IS the distribution of the labels, drawn from ``prior``."""
    rng = np.random.default_rng(seed)
    means = 1.2 * np.eye(CLASSES)
    labels = rng.choice(CLASSES, size=images, p=prior)
    x = means[labels] + rng.normal(size=(images, CLASSES))
    posterior = x @ means.T + np.log(prior)  # up to a constant: log p(x|y) + log p(y), equal norms
    return true_temperature * posterior, labels


def test_against_lbfgs_in_torch():
    logits, labels = draw(3000, 2.5)
    z, y = torch.from_numpy(logits), torch.from_numpy(labels)
    log_t = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_t], max_iter=200, tolerance_grad=1e-14, tolerance_change=1e-16)

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(z / log_t.exp(), y)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert fit_temperature(logits, labels) == pytest.approx(log_t.exp().item(), rel=1e-6)


@pytest.mark.parametrize("true_temperature", [0.3, 1.0, 4.0])
def test_against_a_minimiser_of_the_nll_with_a_shift(true_temperature):
    logits, labels = draw(2000, true_temperature, seed=1)
    shift = np.log([0.4, 0.3, 0.15, 0.1, 0.05])

    def nll(log_t):
        return -log_softmax(logits / np.exp(log_t) + shift, axis=1)[np.arange(len(labels)), labels].mean()

    best = minimize_scalar(nll, bounds=(-4, 4), method="bounded", options={"xatol": 1e-10})
    np.testing.assert_allclose(np.log(fit_temperature(logits, labels, shift)), best.x, **tolerance("flat minimum"))


def test_the_true_temperature_is_found():
    logits, labels = draw(40000, 1.7, seed=2)
    assert fit_temperature(logits, labels) == pytest.approx(1.7, rel=0.03)


def test_a_prior_that_differs_from_training_does_not_pose_as_a_temperature():
    """Trained on a long tail, calibrated on balanced images: T must stay what it is on the tail itself."""
    tail = np.array([0.6, 0.2, 0.1, 0.07, 0.03])
    logits, labels = draw(40000, 1.0, seed=3)
    logits = 2.0 * (logits + np.log(tail) - np.log(UNIFORM))  # overconfident by 2, and for the tail's prior
    assert calibrate(logits, labels, tail).temperature == pytest.approx(2.0, rel=0.03)
    plain = calibrate(logits, labels, UNIFORM).temperature
    assert abs(plain - 2.0) > 0.3  # what the shift is for


def test_what_is_reported_is_measured_on_the_other_half():
    logits, labels = draw(1501, 3.0, seed=4)
    result = calibrate(logits, labels, UNIFORM)
    fit, held_out = split_halves(labels)
    assert (result.fit_images, result.held_out_images) == (len(fit), len(held_out)) == (751, 750)
    shift = np.log(np.bincount(labels) / len(labels)) - np.log(UNIFORM)
    assert result.temperature == fit_temperature(logits[fit], labels[fit], shift)
    y = labels[held_out]
    for temperature, nll, ece in (
        (1.0, result.nll_before, result.before.error),
        (result.temperature, result.nll_after, result.after.error),
    ):
        z = logits[held_out] / temperature + shift
        expected = F.cross_entropy(torch.from_numpy(z), torch.from_numpy(y)).item()
        np.testing.assert_allclose(nll, expected, **tolerance("float64"))
        p = torch.from_numpy(softmax(z, axis=1))
        expected = multiclass_calibration_error(p, torch.from_numpy(y), num_classes=CLASSES, n_bins=15).item()
        np.testing.assert_allclose(ece, expected, **tolerance("calibration error"))
    assert result.nll_after < result.nll_before
    assert result.after.error < result.before.error
    assert result.to_dict()["ece_after"] == result.after.error


def test_the_held_out_half_has_no_say():
    logits, labels = draw(1000, 2.0, seed=5)
    _, held_out = split_halves(labels)
    changed = logits.copy()
    changed[held_out] *= -5
    assert calibrate(changed, labels, UNIFORM).temperature == calibrate(logits, labels, UNIFORM).temperature


def test_logits_of_a_real_classifier_get_better():
    logits, labels = draw(900, 1.0, seed=6)
    model = LogisticRegression(C=1e6, max_iter=2000).fit(logits[:60], labels[:60])  # overfits its 60 images
    result = calibrate(model.decision_function(logits[60:]), labels[60:], UNIFORM)
    assert result.temperature > 1.2
    assert result.nll_after < result.nll_before


@pytest.mark.parametrize(
    "logits",
    [
        pytest.param(np.eye(CLASSES).repeat(4, axis=0), id="every image right: the colder the better"),
        pytest.param(-np.eye(CLASSES).repeat(4, axis=0), id="every image wrong: the hotter the better"),
        pytest.param(np.zeros((4 * CLASSES, CLASSES)), id="the logits say nothing"),
    ],
)
def test_no_temperature_fits(logits):
    labels = np.arange(CLASSES).repeat(4)
    assert fit_temperature(logits, labels) is None
    assert calibrate(logits, labels, UNIFORM) is None


def test_absent_classes_and_one_class_alone():
    logits, labels = draw(600, 2.0, seed=7)
    present = labels < 3
    assert calibrate(logits[present], labels[present], UNIFORM).temperature > 0
    alone = labels == 2
    assert calibrate(logits[alone], labels[alone], UNIFORM) is None  # its frequency alone says all


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.array([0, CLASSES])}, "labels must lie"),
        ({"labels": np.array([-1, 0])}, "labels must lie"),
        ({"logits": np.full((2, CLASSES), np.nan)}, "finite"),
        ({"logits": np.zeros((2, CLASSES + 1))}, "must be"),
        ({"logits": np.zeros((1, CLASSES)), "labels": np.array([0])}, "at least 2"),
    ],
)
def test_impossible_arguments(change, message):
    arguments = {"logits": np.zeros((2, CLASSES)), "labels": np.array([0, 1]), **change}
    with pytest.raises(ValueError, match=message):
        calibrate(**arguments, model_prior=UNIFORM)


def test_halves_are_disjoint_complete_stratified_and_the_same_every_time():
    labels = np.random.default_rng(8).integers(0, 7, size=501)
    first, second = split_halves(labels)
    np.testing.assert_array_equal(np.sort(np.concatenate([first, second])), np.arange(501))
    counts = [np.bincount(labels[half], minlength=7) for half in (first, second)]
    assert np.abs(counts[0] - counts[1]).max() <= 1
    assert abs(len(first) - len(second)) <= 1
    again = split_halves(labels)
    np.testing.assert_array_equal(first, again[0])
    assert not np.array_equal(first, split_halves(labels, seed=1)[0])
