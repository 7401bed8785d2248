"""A training run on the screen: a live bar in a terminal, one line an epoch in a log file."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress
from typing_extensions import Self

from cbn_deploy.training.metrics_log import EpochMetrics
from cbn_deploy.training.progress import Progress, RunPlan, StepMetrics, duration

__all__ = ["ConsoleProgress"]


class ConsoleProgress(Progress):
    """Draws on ``console``; use it as a context manager, so that the bar is taken down whatever happens.

    Attributes:
        completed_epochs: epochs that are safely on disk, ``None`` before training has begun.
        epochs: epochs of the whole run.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.completed_epochs: int | None = None
        self.epochs = 0
        self._steps_per_epoch = 1
        self._first_epoch = 0
        self._start = time.perf_counter()
        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[status]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("starting", status="", left="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def run_started(self, plan: RunPlan) -> None:
        """One line about the run, then the bar."""
        self.completed_epochs = self._first_epoch = plan.completed_epochs
        self.epochs, self._steps_per_epoch = plan.epochs, plan.steps_per_epoch
        self._start = time.perf_counter()
        resumed = f", going on after epoch {plan.completed_epochs}" if plan.completed_epochs else ""
        self.console.print(
            f"{plan.title}; {plan.training_images} training images, epochs: {plan.epochs}, on {plan.device}{resumed}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
        self._bar.update(self._task, total=plan.epochs * plan.steps_per_epoch, completed=self._steps(0))

    def step_done(self, step: StepMetrics) -> None:
        """Move the bar."""
        self._bar.update(
            self._task,
            description=f"epoch {step.epoch}/{self.epochs}",
            completed=self._steps(step.step),
            status=f"loss {step.loss:.3f}  accuracy {step.accuracy:.1%}  {step.images_per_second:.0f} images/s",
            left=f"{self._time_left(step.step)} left",
        )

    def epoch_done(self, metrics: EpochMetrics) -> None:
        """One lasting line."""
        self.completed_epochs = metrics.epoch
        width = len(str(self.epochs))
        line = (
            f"epoch {metrics.epoch:>{width}}/{self.epochs}  loss {metrics.loss:7.3f}  "
            f"training accuracy {metrics.train_accuracy:6.1%}"
        )
        if metrics.top1 is not None:
            groups = " / ".join(
                "-" if value is None else f"{value:.0%}" for value in (metrics.many, metrics.medium, metrics.few)
            )
            line += f"  test {metrics.top1:6.1%} (many / medium / few {groups})"
        line += f"  {metrics.images_per_second:.0f} images/s"
        if metrics.epoch < self.epochs:
            line += f"  {self._time_left(0)} left"
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def stage(self, text: str) -> None:
        """What happens after the last epoch."""
        self._bar.update(self._task, description=text, status="", left="")

    def _steps(self, steps_of_this_epoch: int) -> int:
        return (self.completed_epochs or 0) * self._steps_per_epoch + steps_of_this_epoch

    def _time_left(self, steps_of_this_epoch: int) -> str:
        done = self._steps(steps_of_this_epoch) - self._first_epoch * self._steps_per_epoch
        left = self.epochs * self._steps_per_epoch - self._steps(steps_of_this_epoch)
        return duration((time.perf_counter() - self._start) / max(done, 1) * left)
