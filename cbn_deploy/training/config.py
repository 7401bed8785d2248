"""The parts of a recipe that training itself reads: what is minimised, by which optimizer, for how long."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

__all__ = ["ClassificationLoss", "LossConfig", "OptimizerConfig", "Paths", "ScheduleConfig", "require"]

ClassificationLoss = Literal["balanced_softmax", "cross_entropy"]
Paths = Literal["compound", "compound+split", "two_views"]


def require(condition: bool, name: str, value: object, allowed: str = "one of the named choices") -> None:
    """Raise ValueError unless ``condition`` holds: "``name`` must be ``allowed``, got ``value``"."""
    if not condition:
        raise ValueError(f"{name} must be {allowed}, got {value!r}")


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """What is minimised: ``L_cls(compound) + split_weight L_cls(split) + consistency_weight L_sim``.

    Attributes:
        classification: L_cls, "balanced_softmax" (Eq. 20) or "cross_entropy".
        paths: "compound+split" is dual-path learning (Section 3.4), "compound" trains the compound path alone;
            "two_views" trains it alone, too, but agrees its strong view with its weak one: the control that tells what
            two views give without a second path.
        split_weight: weight of L_cls on the split path (Eq. 20 as printed has the compound path only: 0).
        consistency_weight: weight of L_sim (Eq. 19, or its one-path form); 0 leaves the weak view out altogether.
    """

    classification: ClassificationLoss = "balanced_softmax"
    paths: Paths = "compound+split"
    split_weight: float = 1.0
    consistency_weight: float = 0.5

    def __post_init__(self) -> None:
        require(self.classification in get_args(ClassificationLoss), "classification", self.classification)
        require(self.paths in get_args(Paths), "paths", self.paths)
        require(self.split_weight >= 0, "split_weight", self.split_weight, "at least 0")
        require(self.consistency_weight >= 0, "consistency_weight", self.consistency_weight, "at least 0")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Stochastic gradient descent.

    Attributes:
        lr: peak learning rate.
        momentum: of the gradient.
        weight_decay: L2 penalty.
        decay_norm: whether weight decay also shrinks the scales and biases of the normalisation layers.
    """

    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    decay_norm: bool = True

    def __post_init__(self) -> None:
        require(self.lr > 0, "lr", self.lr, "above 0")
        require(0 <= self.momentum < 1, "momentum", self.momentum, "in [0, 1)")
        require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "at least 0")


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """How long, in which portions.

    Attributes:
        epochs: passes over the training set.
        batch_size: images a step.
        warmup_epochs: epochs of linear warm-up before the cosine.
        evaluate_every: evaluate on the test set every so many epochs (the last one always).
    """

    epochs: int
    batch_size: int = 128
    warmup_epochs: int = 0
    evaluate_every: int = 1

    def __post_init__(self) -> None:
        require(self.epochs >= 1, "epochs", self.epochs, "at least 1")
        require(self.batch_size >= 2, "batch_size", self.batch_size, "at least 2")
        require(0 <= self.warmup_epochs < self.epochs, "warmup_epochs", self.warmup_epochs, f"in 0..{self.epochs - 1}")
        require(self.evaluate_every >= 1, "evaluate_every", self.evaluate_every, "at least 1")
