"""The class prior in a model's description, against the minimum of the loss that trained it.

The world has a handful of images x, class shares p(k) and P(x | k). Where the expected loss is smallest, found by a
solver that knows nothing of the derivation, the logits must say what the stated prior says they say.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cbn_deploy.data.samplers import sampled_class_distribution
from cbn_deploy.training import apply_settings, get_recipe
from cbn_deploy.training.classification import assumed_prior, classification_loss
from cbn_deploy.training.decoupled import training_prior
from cbn_deploy.training.loss_config import LossConfig
from tests.reference.tolerances import tolerance

COUNTS = (120, 40, 25, 5)
IMAGES = 6
SEED = 5
PROPER = {
    "cross-entropy": LossConfig(classification="cross_entropy"),
    "weighted cross-entropy": LossConfig(classification="cross_entropy", class_weights="inverse"),
    "class-balanced cross-entropy": LossConfig(
        classification="cross_entropy", class_weights="effective_number", effective_number_beta=0.99
    ),
    "balanced softmax": LossConfig(),
    "weighted balanced softmax": LossConfig(class_weights="inverse"),
    "logit adjustment": LossConfig(classification="logit_adjustment"),
    "half a logit adjustment": LossConfig(classification="logit_adjustment", tau=0.5, class_weights="inverse"),
    "vector scaling without factors": LossConfig(classification="vector_scaling", vector_scaling_gamma=0.0, tau=1.25),
}
RANKING = {
    "focal": LossConfig(classification="focal", class_weights="effective_number", effective_number_beta=0.99),
    "ldam": LossConfig(classification="ldam"),
    "weighted ldam": LossConfig(classification="ldam", class_weights="inverse"),
}


def likelihoods():
    """P(x | k): (IMAGES, K)."""
    return np.random.default_rng(SEED).dirichlet(np.ones(IMAGES) / 2, size=len(COUNTS)).T


def best_softmax(loss, sampling):
    """softmax(o) for each image, o the minimum of its expected loss: (IMAGES, K)."""
    classify = classification_loss(loss, COUNTS, sampling=sampling)
    joint = torch.from_numpy(likelihoods() * sampled_class_distribution(COUNTS, sampling))
    logits = torch.zeros(joint.shape, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [logits], max_iter=2000, tolerance_grad=1e-14, tolerance_change=1e-18, line_search_fn="strong_wolfe"
    )
    labels = [torch.tensor([k]) for k in range(len(COUNTS))]

    def expected_loss():
        optimizer.zero_grad()
        terms = [
            p * classify(o[None], y)
            for o, row in zip(logits, joint, strict=True)
            for p, y in zip(row, labels, strict=True)
        ]
        total = torch.stack(terms).sum()
        total.backward()
        return total

    optimizer.step(expected_loss)
    return logits.detach().softmax(dim=1).numpy()


def stated(loss, sampling):
    """P(x | k) q_k, normalised, with q the prior that the description states."""
    weighted = likelihoods() * np.asarray(assumed_prior(loss, COUNTS, sampling=sampling))
    return weighted / weighted.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("sampling", ["instance_balanced", "square_root", "class_balanced"])
@pytest.mark.parametrize("loss", PROPER.values(), ids=PROPER)
def test_the_stated_prior_is_the_one_at_the_losses_minimum(loss, sampling):
    np.testing.assert_allclose(best_softmax(loss, sampling), stated(loss, sampling), **tolerance("loss minimum"))


@pytest.mark.parametrize("loss", RANKING.values(), ids=RANKING)
def test_focal_and_ldam_choose_the_class_that_the_stated_prior_would(loss):
    found, expected = best_softmax(loss, "instance_balanced"), stated(loss, "instance_balanced")
    runner_up, first = np.sort(expected, axis=1)[:, -2:].T
    assert (first > 1.05 * runner_up).all()  # LDAM's promise holds up to ratios of 1 + exp(-s Delta)
    assert found.argmax(axis=1).tolist() == expected.argmax(axis=1).tolist()
    assert len(set(found.argmax(axis=1))) > 1
    if loss.classification == "focal":
        assert np.array_equal(found.argsort(axis=1), expected.argsort(axis=1))


@pytest.mark.parametrize(
    ("settings", "weights"),
    [
        ([], [1, 1, 1]),
        (["loss.classification=logit_adjustment"], [1, 1, 1]),
        (["loss.classification=cross_entropy"], [6, 3, 1]),
        (["loss.classification=focal"], [6, 3, 1]),
        (["loss.classification=cross_entropy", "loss.class_weights=inverse"], [1, 1, 1]),
        (["loss.classification=cross_entropy", "sampling=class_balanced"], [1, 1, 1]),
        (["sampling=class_balanced"], [1, 1, 1]),
        (["loss.class_weights=inverse"], [1 / 6, 1 / 3, 1]),
        (["loss.classification=ldam", "loss.class_weights=inverse", "loss.class_weights_from=0.8"], [1, 1, 1]),
        (["loss.classification=vector_scaling", "loss.tau=0.5"], [6**0.5, 3**0.5, 1]),
        # Table 3: after decoupled training only the second stage counts.
        (["decoupled.share=0.25"], [1, 1, 1]),
        (["decoupled.share=0.25", "decoupled.sampling=class_balanced"], [1, 1, 1]),
        (["decoupled.share=0.25", "decoupled.class_weights=inverse"], [1 / 6, 1 / 3, 1]),
        (["loss.class_weights=inverse", "decoupled.share=0.25"], [1, 1, 1]),
        (["decoupled.share=0.25", "decoupled.classification=cross_entropy"], [6, 3, 1]),
        (["loss.classification=cross_entropy", "decoupled.share=0.25", "decoupled.sampling=class_balanced"], [1, 1, 1]),
    ],
)
def test_the_prior_of_a_recipe(settings, weights):
    recipe = apply_settings(get_recipe("digits-lt"), settings)
    assert training_prior(recipe, (600, 300, 100)) == pytest.approx([w / sum(weights) for w in weights])
