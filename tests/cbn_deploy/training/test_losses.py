from __future__ import annotations

import numpy as np
import pytest
import torch

from cbn_deploy.training.class_tables import class_weights, ldam_margins, log_class_prior, vector_scaling_factors
from cbn_deploy.training.classification import classification_loss
from cbn_deploy.training.loss_config import LossConfig
from cbn_deploy.training.losses import (
    balanced_softmax,
    consistency,
    cross_entropy,
    focal,
    ldam,
    logit_adjustment,
    vector_scaling,
)
from tests.reference import losses_float64 as reference
from tests.reference.tolerances import tolerance

COUNTS = (5000, 130, 21, 3, 1)
# What a recipe says -> what the reference needs to hear.
LOSSES = {
    "cross_entropy": {},
    "balanced_softmax": {},
    "focal": {"gamma": 1.5},
    "ldam": {"max_margin": 0.4, "scale": 12.0},
    "logit_adjustment": {"tau": 1.3},
    "vector_scaling": {"gamma": 0.15, "tau": 1.25},
}
WEIGHTS = ("none", "inverse", "effective_number")


def config(name, weights="none"):
    said = {
        "focal": {"focal_gamma": 1.5},
        "ldam": {"ldam_max_margin": 0.4, "ldam_scale": 12.0},
        "logit_adjustment": {"tau": 1.3},
        "vector_scaling": {"vector_scaling_gamma": 0.15, "tau": 1.25},
    }
    return LossConfig(classification=name, class_weights=weights, effective_number_beta=0.99, **said.get(name, {}))


@pytest.fixture
def batch():
    rng = np.random.default_rng(7)
    return rng.normal(scale=4.0, size=(33, len(COUNTS))), rng.integers(0, len(COUNTS), size=33)


def cosine(a, b):
    return (a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1))


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_its_papers_equation(batch, name, weights):
    logits, labels = batch
    factors = reference.class_weights(COUNTS, weights, beta=0.99)
    expected = reference.mean(getattr(reference, name), logits, labels, factors, COUNTS, **LOSSES[name])
    actual = classification_loss(config(name, weights), COUNTS)(torch.from_numpy(logits), torch.from_numpy(labels))
    np.testing.assert_allclose(actual.item(), expected, **tolerance("loss"))


@pytest.mark.parametrize("weights", ["none", "inverse"])
@pytest.mark.parametrize("name", LOSSES)
def test_every_gradient_is_that_of_its_loss(batch, name, weights):
    logits, labels = (torch.from_numpy(part[:6]) for part in batch)
    loss = classification_loss(config(name, weights), COUNTS)
    assert torch.autograd.gradcheck(lambda o: loss(o, labels), logits.requires_grad_())


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_survives_huge_logits(name):
    logits = torch.tensor([[3e4, -3e4, 0.0, 0.0, 1.0]] * 2, requires_grad=True)
    loss = classification_loss(config(name, "effective_number"), COUNTS)(logits, torch.tensor([1, 0]))
    loss.backward()
    assert torch.isfinite(loss)
    assert loss.item() > 1e3
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("gamma", [0.0, 0.01, 0.5, 2.0])
def test_focal_loss_of_a_certain_prediction_has_a_finite_slope(gamma):
    logits = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    focal(logits, torch.tensor([0]), gamma).backward()
    assert torch.isfinite(logits.grad).all()


def test_losses_meet_where_their_papers_say(batch):
    logits, labels = (torch.from_numpy(part) for part in batch)
    log_prior = log_class_prior(COUNTS)
    plain, balanced = cross_entropy(logits, labels), balanced_softmax(logits, labels, log_prior)
    ones = vector_scaling_factors(COUNTS, 0.0)
    same = (
        (focal(logits, labels, 0.0), plain),
        (ldam(logits, labels, torch.zeros(len(COUNTS)), 30.0), plain),
        (logit_adjustment(logits, labels, log_prior, 0.0), plain),
        (logit_adjustment(logits, labels, log_prior, 1.0), balanced),
        (vector_scaling(logits, labels, ones, log_prior, 1.0), balanced),
        (balanced_softmax(logits, labels, log_class_prior([7] * len(COUNTS))), plain),
        (balanced_softmax(logits, labels, log_class_prior(COUNTS, "class_balanced")), plain),
        (cross_entropy(logits, labels, torch.ones(len(COUNTS))), plain),
    )
    for actual, expected in same:
        np.testing.assert_allclose(actual.item(), expected.item(), **tolerance("loss"))


def test_the_batch_can_be_taken_in_parts(batch):
    logits, labels = (torch.from_numpy(part[:32]) for part in batch)
    loss = classification_loss(config("cross_entropy", "inverse"), COUNTS)
    parts = [loss(logits[start : start + 8], labels[start : start + 8]).item() for start in range(0, 32, 8)]
    np.testing.assert_allclose(np.mean(parts), loss(logits, labels).item(), **tolerance("loss"))


@pytest.mark.parametrize("weights", ["none", "inverse"])
@pytest.mark.parametrize("name", LOSSES)
def test_no_images_lose_nothing(name, weights):
    logits = torch.empty(0, len(COUNTS), requires_grad=True)
    loss = classification_loss(config(name, weights), COUNTS)(logits, torch.empty(0, dtype=torch.int64))
    (loss + consistency(logits, logits, logits, logits)).backward()
    assert loss.item() == 0.0
    assert logits.grad.shape == logits.shape


def test_class_weights_can_wait(batch):
    logits, labels = (torch.from_numpy(part) for part in batch)
    loss = config("focal", "inverse")
    early = classification_loss(loss, COUNTS, weighted=False)(logits, labels)
    assert torch.equal(early, classification_loss(config("focal"), COUNTS)(logits, labels))
    assert not torch.equal(early, classification_loss(loss, COUNTS)(logits, labels))


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("beta", [0.0, 0.9, 0.9999])
def test_class_weights_are_of_mean_one(kind, beta):
    weights = class_weights(COUNTS, kind, beta)
    np.testing.assert_allclose(weights, reference.class_weights(COUNTS, kind, beta), **tolerance("class table"))
    assert weights.mean().item() == pytest.approx(1.0)


def test_the_effective_number_lies_between_no_weights_and_inverse_counts():
    assert torch.equal(class_weights(COUNTS, "effective_number", 0.0), torch.ones(len(COUNTS)))
    near_one = class_weights(COUNTS, "effective_number", 1 - 1e-9)
    torch.testing.assert_close(near_one, class_weights(COUNTS, "inverse"), rtol=1e-5, atol=0)


def test_margins_and_factors():
    margins = ldam_margins((10000, 625, 16, 1), max_margin=0.5)
    torch.testing.assert_close(margins, torch.tensor([0.05, 0.1, 0.25, 0.5]))
    torch.testing.assert_close(vector_scaling_factors((400, 100, 4), 0.5), torch.tensor([1.0, 0.5, 0.1]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: log_class_prior([5, 0, 2]), "at least 1"),
        (lambda: log_class_prior([]), "at least 1"),
        (lambda: class_weights([5, 0, 2], "inverse"), "at least 1"),
        (lambda: class_weights([5, 2], "effective_number", 1.0), "beta"),
        (lambda: class_weights([5, 2], "other"), "kind"),
        (lambda: ldam_margins([5, 0]), "at least 1"),
        (lambda: ldam_margins([5, 2], 0.0), "max_margin"),
        (lambda: vector_scaling_factors([5, 2], -0.1), "gamma"),
        (lambda: classification_loss(LossConfig(), [5, 0]), "at least 1"),
    ],
)
def test_impossible_tables_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_consistency_is_equation_19_as_printed():
    rng = np.random.default_rng(3)
    compound_strong, split_strong, compound_weak, split_weak = rng.normal(size=(4, 17, 10))
    expected = (-cosine(compound_strong, split_weak) - cosine(split_strong, compound_weak)).mean()
    actual = consistency(*(torch.from_numpy(a) for a in (compound_strong, split_strong, compound_weak, split_weak)))
    np.testing.assert_allclose(actual.item(), expected, **tolerance("float64"))


def test_consistency_of_parallel_logits_is_minus_two():
    logits = torch.randn(5, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert consistency(logits, 2 * logits, 3 * logits, logits).item() == pytest.approx(-2.0)


def test_consistency_stops_the_gradient_of_the_weak_views():
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(4, 6, generator=generator, requires_grad=True) for _ in range(4)]
    consistency(*logits).backward()
    compound_strong, split_strong, compound_weak, split_weak = logits
    assert compound_strong.grad is not None
    assert compound_strong.grad.abs().max() > 0
    assert split_strong.grad is not None
    assert split_strong.grad.abs().max() > 0
    assert compound_weak.grad is None
    assert split_weak.grad is None


def test_consistency_of_zero_logits_is_finite():
    zero = torch.zeros(2, 3, requires_grad=True)
    loss = consistency(zero, zero, torch.ones(2, 3), torch.ones(2, 3))
    loss.backward()
    assert loss.item() == 0.0
    assert torch.isfinite(zero.grad).all()
