from __future__ import annotations

import numpy as np
import pytest
import torch

from cbn_deploy.training.class_tables import log_class_prior
from cbn_deploy.training.losses import balanced_softmax, consistency, cross_entropy
from tests.reference.tolerances import tolerance

COUNTS = (5000, 130, 21, 3, 1)


@pytest.fixture
def batch():
    rng = np.random.default_rng(7)
    return rng.normal(scale=4.0, size=(33, len(COUNTS))), rng.integers(0, len(COUNTS), size=33)


def cosine(a, b):
    return (a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1))


def test_cross_entropy_against_numpy(batch):
    logits, labels = batch
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = -np.log(probabilities[np.arange(len(labels)), labels]).mean()
    actual = cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels))
    np.testing.assert_allclose(actual.item(), expected, **tolerance("float64"))


def test_balanced_softmax_is_equation_20_as_printed(batch):
    logits, labels = batch
    counts = np.asarray(COUNTS, dtype=np.float64)
    weighted = counts * np.exp(logits)
    expected = -np.log(weighted[np.arange(len(labels)), labels] / weighted.sum(1)).mean()
    actual = balanced_softmax(torch.from_numpy(logits), torch.from_numpy(labels), log_class_prior(COUNTS))
    np.testing.assert_allclose(actual.item(), expected, **tolerance("loss"))


def test_balanced_softmax_survives_huge_logits():
    logits = torch.tensor([[3e4, -3e4, 0.0, 0.0, 1.0]])
    loss = balanced_softmax(logits, torch.tensor([1]), log_class_prior(COUNTS))
    assert torch.isfinite(loss)
    assert loss.item() > 5e4


def test_equal_counts_make_balanced_softmax_cross_entropy(batch):
    logits, labels = (torch.from_numpy(part) for part in batch)
    balanced = balanced_softmax(logits, labels, log_class_prior([7] * len(COUNTS)))
    np.testing.assert_allclose(balanced.item(), cross_entropy(logits, labels).item(), **tolerance("loss"))


def test_a_class_without_images_has_no_prior():
    with pytest.raises(ValueError, match="at least 1"):
        log_class_prior([5, 0, 2])


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
