"""What a running training tells whoever watches it; the command line draws it, the library never prints."""

from __future__ import annotations

from dataclasses import dataclass

from cbn_deploy.training.metrics_log import EpochMetrics

__all__ = ["Progress", "RunPlan", "StepMetrics", "duration"]


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """What is about to happen.

    Attributes:
        title: recipe and model, such as "digits-lt, resnet20".
        completed_epochs: epochs already done by an earlier run (0 unless resumed).
        epochs: epochs of the whole run.
        steps_per_epoch: optimizer steps an epoch.
        training_images: images an epoch.
        device: "cpu" or the accelerator's name.
    """

    title: str
    completed_epochs: int
    epochs: int
    steps_per_epoch: int
    training_images: int
    device: str


@dataclass(frozen=True, kw_only=True)
class StepMetrics:
    """Running means of the present epoch: loss, accuracy on the strong views, images a second."""

    epoch: int
    step: int
    loss: float
    accuracy: float
    images_per_second: float


class Progress:
    """Receives the events of a run; this base ignores them all, so subclasses override what they show."""

    def run_started(self, plan: RunPlan) -> None:
        """Training is about to begin or to go on."""

    def step_done(self, step: StepMetrics) -> None:
        """One optimizer step is done."""

    def epoch_done(self, metrics: EpochMetrics) -> None:
        """One epoch is done, evaluated and safely on disk."""

    def stage(self, text: str) -> None:
        """Something other than an epoch begins, such as writing the report."""


def duration(seconds: float) -> str:
    """ "45 s", "3 min 10 s" or "2 h 05 min"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
