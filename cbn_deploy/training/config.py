"""The parts of a recipe that say by which optimizer and for how long."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["OptimizerConfig", "Precision", "ScheduleConfig", "require"]

Precision = Literal["fp32", "bf16"]


def require(condition: bool, name: str, value: object, allowed: str) -> None:
    """Raise ValueError unless ``condition`` holds: "``name`` must be ``allowed``, got ``value``"."""
    if not condition:
        raise ValueError(f"{name} must be {allowed}, got {value!r}")


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
        batch_size: images a step, over all processes and portions.
        accumulate: portions of a batch that are computed one after another, for less memory: their gradients add up to
            one step, but each portion is normalised by its own statistics.
        warmup_epochs: epochs of linear warm-up before the cosine.
        evaluate_every: evaluate on the test set every so many epochs (the last one always).
    """

    epochs: int
    batch_size: int = 128
    accumulate: int = 1
    warmup_epochs: int = 0
    evaluate_every: int = 1

    def __post_init__(self) -> None:
        require(self.epochs >= 1, "epochs", self.epochs, "at least 1")
        require(self.batch_size >= 2, "batch_size", self.batch_size, "at least 2")
        most = self.batch_size // 2
        require(1 <= self.accumulate <= most, "accumulate", self.accumulate, f"in 1..{most} (two images a portion)")
        require(0 <= self.warmup_epochs < self.epochs, "warmup_epochs", self.warmup_epochs, f"in 0..{self.epochs - 1}")
        require(self.evaluate_every >= 1, "evaluate_every", self.evaluate_every, "at least 1")
