from __future__ import annotations

import copy

import pytest
import torch

from cbn_deploy.data import TrainingBatch
from cbn_deploy.models import create_model
from cbn_deploy.norm import split_path
from cbn_deploy.training import RECIPES, apply_settings
from cbn_deploy.training.averages import EpochAverages, step_sums
from cbn_deploy.training.class_tables import log_class_prior
from cbn_deploy.training.classification import classification_loss
from cbn_deploy.training.losses import balanced_softmax, consistency
from cbn_deploy.training.optimizer import make_optimizer
from cbn_deploy.training.step import step_losses

COUNTS = (40, 10, 3)
DUAL = apply_settings(
    RECIPES["image-folder"],
    ["model=resnet20", "loss.paths=compound+split", "loss.split_weight=0.7", "loss.consistency_weight=0.3"],
)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(5)
    strong, weak = (torch.randn(6, 3, 16, 16, generator=generator) for _ in range(2))
    return TrainingBatch(strong=strong, weak=weak, labels=torch.tensor([0, 0, 1, 2, 0, 1]))


def make_model(recipe):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return create_model(recipe.architecture(len(COUNTS)), COUNTS).train()


def test_a_dual_step_is_algorithm_1_written_out(batch):
    model = make_model(DUAL)
    reference = copy.deepcopy(model)
    log_prior = log_class_prior(COUNTS)
    losses = step_losses(model, batch, DUAL, classification_loss(DUAL.loss, COUNTS))
    losses.total.backward()

    compound_weak = reference(batch.weak)
    with split_path(reference, batch.labels):
        split_weak = reference(batch.weak)
    compound_strong = reference(batch.strong)
    with split_path(reference, batch.labels):
        split_strong = reference(batch.strong)
    expected = (
        balanced_softmax(compound_strong, batch.labels, log_prior)
        + 0.7 * balanced_softmax(split_strong, batch.labels, log_prior)
        + 0.3 * consistency(compound_strong, split_strong, compound_weak, split_weak)
    )
    expected.backward()

    assert torch.equal(losses.total, expected)
    assert torch.equal(losses.logits, compound_strong)
    for (name, ours), theirs in zip(model.named_parameters(), reference.parameters(), strict=True):
        assert ours.grad is not None, name
        assert torch.equal(ours.grad, theirs.grad), name
    for name, buffer in reference.named_buffers():
        assert torch.equal(buffer, model.get_buffer(name)), name


def test_without_consistency_the_weak_view_is_not_needed(batch):
    recipe = apply_settings(DUAL, ["loss.consistency_weight=0"])
    only_strong = TrainingBatch(strong=batch.strong, weak=None, labels=batch.labels)
    losses = step_losses(make_model(recipe), only_strong, recipe, classification_loss(recipe.loss, COUNTS))
    assert losses.consistency is None
    assert losses.split is not None
    assert losses.total.item() == pytest.approx(losses.classification.item() + 0.7 * losses.split.item())


def test_a_missing_weak_view_is_refused(batch):
    only_strong = TrainingBatch(strong=batch.strong, weak=None, labels=batch.labels)
    with pytest.raises(ValueError, match="no weak one"):
        step_losses(make_model(DUAL), only_strong, DUAL, classification_loss(DUAL.loss, COUNTS))


@pytest.mark.parametrize("settings", [["loss.paths=compound"], ["model=resnet20-bn"]])
def test_single_path_recipes_minimise_one_loss(batch, settings):
    recipe = apply_settings(RECIPES["image-folder"], ["model=resnet20", *settings])
    model = make_model(recipe)
    expected = balanced_softmax(copy.deepcopy(model)(batch.strong), batch.labels, log_class_prior(COUNTS))
    losses = step_losses(model, batch, recipe, classification_loss(recipe.loss, COUNTS))
    assert torch.equal(losses.total, expected)
    assert losses.split is None
    assert losses.consistency is None


def test_cross_entropy_ignores_the_prior(batch):
    recipe = apply_settings(RECIPES["image-folder"], ["model=resnet20-bn", "loss.classification=cross_entropy"])
    model = make_model(recipe)
    expected = torch.nn.functional.cross_entropy(copy.deepcopy(model)(batch.strong), batch.labels)
    losses = step_losses(model, batch, recipe, classification_loss(recipe.loss, COUNTS))
    assert torch.equal(losses.total, expected)


def test_averages_weigh_by_images(batch):
    model, classify = make_model(DUAL), classification_loss(DUAL.loss, COUNTS)
    small = TrainingBatch(strong=batch.strong[:2], weak=batch.weak[:2], labels=batch.labels[:2])
    averages = EpochAverages()
    steps = []
    for part in (batch, small):
        losses = step_losses(model, part, DUAL, classify)
        averages.add(step_sums(losses, part.labels))
        steps.append((losses, len(part.labels), int((losses.logits.argmax(1) == part.labels).sum())))
    assert averages.images == 8
    assert averages.loss == pytest.approx(sum(step.total.item() * n for step, n, _ in steps) / 8)
    assert averages.split == pytest.approx(sum(step.split.item() * n for step, n, _ in steps) / 8)
    assert averages.accuracy == sum(correct for *_, correct in steps) / 8


def test_weight_decay_can_spare_the_normalisation_layers():
    model = make_model(DUAL)
    recipe = apply_settings(DUAL, ["optimizer.decay_norm=no", "optimizer.weight_decay=0.1", "optimizer.momentum=0"])
    optimizer = make_optimizer(model, recipe.optimizer)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    norm_names = {
        f"{name}.{kind}"
        for name, m in model.named_modules()
        if hasattr(m, "running_tau")
        for kind in ("weight", "bias")
    }
    assert norm_names
    for name, parameter in model.named_parameters():
        shrunk = before[name] if name in norm_names else before[name] * (1 - recipe.optimizer.lr * 0.1)
        torch.testing.assert_close(parameter.detach(), shrunk)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(before)
