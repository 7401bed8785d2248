"""The forward half of one step of Algorithm 1: four passes through the network, three losses."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cbn_deploy.data import TrainingBatch
from cbn_deploy.norm import split_path
from cbn_deploy.training.classification import Classification
from cbn_deploy.training.execution import weights_cast_once
from cbn_deploy.training.losses import consistency, view_consistency
from cbn_deploy.training.recipe import Recipe

__all__ = ["StepLosses", "step_losses"]


@dataclass(frozen=True, kw_only=True)
class StepLosses:
    """Scalars with gradient, and what the compound path said.

    Attributes:
        total: what is minimised.
        classification: L_cls on the compound path (the only path of a batch-norm model).
        split: L_cls on the split path, unweighted, or ``None``.
        consistency: L_sim, Eq. 19, unweighted, or ``None``.
        logits: (B, K), compound path, strong view.
    """

    total: Tensor
    classification: Tensor
    split: Tensor | None
    consistency: Tensor | None
    logits: Tensor


def step_losses(model: nn.Module, batch: TrainingBatch, recipe: Recipe, classify: Classification) -> StepLosses:
    """Lines 3 to 8 of Algorithm 1, in its order: weak compound, weak split, strong compound, strong split.

    Args:
        model: in training mode, where every pass updates its running statistics, unless its features are fixed.
        batch: both views if the recipe needs two.
        recipe: which paths, and the weights of their losses.
        classify: L_cls, of :func:`cbn_deploy.training.classification.classification_loss`.
    """
    if not recipe.dual_path:
        return _one_path(model, batch, recipe, classify)
    weak = _weak_logits(model, batch, recipe) if recipe.two_views else None
    compound, split = _both_paths(model, batch.strong, batch.labels, recipe)
    compound_loss, split_loss = classify(compound, batch.labels), classify(split, batch.labels)
    total = compound_loss + recipe.loss.split_weight * split_loss
    agreement = None
    if weak is not None:
        agreement = consistency(compound, split, *weak)
        total = total + recipe.loss.consistency_weight * agreement
    return StepLosses(
        total=total, classification=compound_loss, split=split_loss, consistency=agreement, logits=compound
    )


def _one_path(model: nn.Module, batch: TrainingBatch, recipe: Recipe, classify: Classification) -> StepLosses:
    """Batch norm, or the compound path alone; with two views the control without a second path."""
    weak = _weak_view(model, batch) if recipe.two_views else None
    logits = model(batch.strong)
    loss = total = classify(logits, batch.labels)
    agreement = None
    if weak is not None:
        agreement = view_consistency(logits, weak)
        total = loss + recipe.loss.consistency_weight * agreement
    return StepLosses(total=total, classification=loss, split=None, consistency=agreement, logits=logits)


def _both_paths(model: nn.Module, images: Tensor, labels: Tensor, recipe: Recipe) -> tuple[Tensor, Tensor]:
    with weights_cast_once(images, recipe.precision):
        compound = model(images)
        with split_path(model, labels):
            split = model(images)
    return compound, split


@torch.no_grad()  # Eq. 19 detaches both
def _weak_logits(model: nn.Module, batch: TrainingBatch, recipe: Recipe) -> tuple[Tensor, Tensor]:
    return _both_paths(model, _weak_images(batch), batch.labels, recipe)


@torch.no_grad()
def _weak_view(model: nn.Module, batch: TrainingBatch) -> Tensor:
    logits: Tensor = model(_weak_images(batch))
    return logits


def _weak_images(batch: TrainingBatch) -> Tensor:
    if batch.weak is None:
        raise ValueError("the recipe needs two views, but the batch has no weak one")
    return batch.weak
