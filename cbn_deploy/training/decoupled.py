"""The stages of a run: everything at once, or first the representation and then the classifier on fixed features.

Decoupled training (Section 4.3 of the paper; Kang et al. 2020): re-sampling and re-weighting help the classifier and
harm the features, so they come in when the features are done. In the second stage

- the feature extractor is a fixed function: its parameters get no gradient, no weight decay and no update, and its
  normalisation layers are in evaluation mode. With batch statistics a feature would depend on the other images of its
  batch, and the running statistics, which the finished model uses, would drift towards those of the re-sampled images;
- only the classification loss on the compound path is left, with the strong view: the split path and the consistency
  loss shape features;
- the cosine schedule starts again at its peak, without a warm-up, and the classifier's momentum starts at zero.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from cbn_deploy.training.classification import Classification, assumed_prior, classification_loss
from cbn_deploy.training.recipe import Recipe
from cbn_deploy.training.schedule import cosine_learning_rate

__all__ = ["Stage", "StageLosses", "StageSwitch", "last_layer", "stages", "training_prior"]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A range of a run's epochs.

    Attributes:
        recipe: what these epochs minimise, draw and optimise with: the run's recipe, or for the second stage that
            recipe with its ``decoupled`` settings in the place of those they replace.
        first: 0-based epoch that it starts with.
        epochs: how many.
        classifier_only: whether the features are fixed.
    """

    recipe: Recipe
    first: int
    epochs: int
    classifier_only: bool = False

    def learning_rate(self, epoch: int, step: int, steps_per_epoch: int) -> float:
        """Of step ``step`` (0-based) of epoch ``epoch`` (0-based, of the run)."""
        warmup = 0 if self.classifier_only else self.recipe.schedule.warmup_epochs
        return cosine_learning_rate(
            (epoch - self.first) * steps_per_epoch + step,
            self.epochs * steps_per_epoch,
            self.recipe.optimizer.lr,
            warmup * steps_per_epoch,
        )

    def classification_loss(self, class_counts: Sequence[int], epoch: int, device: torch.device) -> Classification:
        """L_cls in epoch ``epoch`` (0-based, of the run).

        Class weights begin after ``loss.class_weights_from`` of the stage's epochs, in its last one at the latest.

        Raises:
            ValueError: a class without training images.
        """
        return classification_loss(
            self.recipe.loss,
            class_counts,
            sampling=self.recipe.sampling,
            weighted=self.is_weighted(epoch),
            device=device,
        )

    def is_weighted(self, epoch: int) -> bool:
        """Whether the class weights apply in epoch ``epoch`` (0-based, of the run)."""
        unweighted_epochs = min(round(self.recipe.loss.class_weights_from * self.epochs), self.epochs - 1)
        return epoch - self.first >= unweighted_epochs


def stages(recipe: Recipe) -> tuple[Stage, ...]:
    """The one or two stages of a run, in order."""
    epochs, decoupled = recipe.schedule.epochs, recipe.decoupled
    second = decoupled.classifier_epochs(epochs)
    first = Stage(recipe=recipe, first=0, epochs=epochs - second)
    if not second:
        return (first,)
    loss = dataclasses.replace(
        recipe.loss,
        classification=decoupled.classification or recipe.loss.classification,
        paths="compound",
        class_weights=decoupled.class_weights,
        class_weights_from=0.0,
    )
    optimizer = dataclasses.replace(recipe.optimizer, lr=decoupled.lr or recipe.optimizer.lr)
    classifier_recipe = dataclasses.replace(recipe, loss=loss, sampling=decoupled.sampling, optimizer=optimizer)
    return (first, Stage(recipe=classifier_recipe, first=epochs - second, epochs=second, classifier_only=True))


def training_prior(recipe: Recipe, class_counts: Sequence[int]) -> tuple[float, ...]:
    """The class prior that ``softmax(logits)`` of the finished model assumes: that of the last stage's loss."""
    last = stages(recipe)[-1].recipe
    return assumed_prior(last.loss, class_counts, sampling=last.sampling)


class StageLosses:
    """The classification loss of every epoch: one function for all epochs of a stage with the same class weights.

    Recorded steps are known by it.

    Args:
        class_counts: K training counts.
        device: of the logits.
    """

    def __init__(self, class_counts: Sequence[int], device: torch.device) -> None:
        self._class_counts, self._device = class_counts, device
        self._made: dict[tuple[Stage, bool], Classification] = {}

    def of(self, stage: Stage, epoch: int) -> Classification:
        """L_cls in epoch ``epoch`` (0-based, of the run), which is one of ``stage``; see :class:`Stage`."""
        key = (stage, stage.is_weighted(epoch))
        if key not in self._made:
            self._made[key] = stage.classification_loss(self._class_counts, epoch, self._device)
        return self._made[key]


class StageSwitch:
    """Puts network and optimizer into the stage of an epoch.

    Args:
        recipe: of the run.
        model: the network, with one linear layer, its last.
        optimizer: of all its parameters; those without gradient are left alone by it.
    """

    def __init__(self, recipe: Recipe, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._stages = stages(recipe)
        self._model = model
        self._optimizer = optimizer
        self._seed = recipe.seed
        self._classifier = recipe.decoupled.classifier
        self._hook: RemovableHandle | None = None

    def enter(self, epoch: int) -> Stage:
        """The stage of epoch ``epoch`` (0-based); the network is in the right mode and ready to be trained.

        Call it before every epoch, in whatever epoch a run is resumed: what happens once, at the start of the second
        stage, happens in that stage's first epoch, and everything else depends on the epoch alone.
        """
        stage = next(stage for stage in reversed(self._stages) if epoch >= stage.first)
        if not stage.classifier_only:
            self._model.train()
            return stage
        self._freeze_features()
        if epoch == stage.first:
            self._optimizer.state.clear()
            if self._classifier == "reset":
                _reset(last_layer(self._model), self._seed)
        return stage

    def _freeze_features(self) -> None:
        self._model.eval()
        classifier = last_layer(self._model)
        rescale = self._classifier == "rescale"
        trained = {classifier.weight} if rescale else set(classifier.parameters())
        for parameter in self._model.parameters():
            if parameter not in trained:
                parameter.requires_grad_(False)
                parameter.grad = None
        if rescale and self._hook is None:
            self._hook = classifier.weight.register_hook(  # type: ignore[no-untyped-call]  # torch leaves it untyped
                lambda gradient: _along(gradient, classifier.weight)
            )


def last_layer(model: nn.Module) -> nn.Linear:
    """The network's classifier, its only linear layer.

    Raises:
        ValueError: there is none, or more than one.
    """
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if len(linear) != 1:
        raise ValueError(f"the network must have one linear layer, got {len(linear)}")
    return linear[0]


def _reset(classifier: nn.Linear, seed: int) -> None:
    # On the CPU with a seed of its own, so that neither the device nor a resumed run changes the new weights.
    fresh = copy.deepcopy(classifier).cpu()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh.reset_parameters()
    classifier.load_state_dict(fresh.state_dict())


def _along(gradient: Tensor, weight: Tensor) -> Tensor:
    """The part of each row of ``gradient`` along that row of ``weight`` (both (K, D)): lengths change, not directions.

    That is gradient descent on f of LWS (Kang et al. 2020), ``w_k -> f_k w_k``, with the unit of f at length 1.
    """
    direction = nn.functional.normalize(weight.detach(), dim=1)
    return (gradient * direction).sum(dim=1, keepdim=True) * direction
