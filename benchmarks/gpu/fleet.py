"""Several trainings at once on one GPU: a small network's step leaves most of a large GPU idle.

Each training has its own network, optimizer, recorded steps (CUDA graphs) and stream; those of one seed see the same
batches, which are made once. What is computed is `cbn-train`'s own step (:mod:`cbn_deploy.training.descent`).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cbn_deploy.atomic import atomic_write_bytes
from cbn_deploy.data import LongTailedData, TrainingBatch, TrainingLoader, evaluation_batches
from cbn_deploy.errors import CheckpointError, RecipeError
from cbn_deploy.models import create_model
from cbn_deploy.training.artifacts import build_report
from cbn_deploy.training.averages import StepSums, means_of
from cbn_deploy.training.decoupled import StageLosses, stages
from cbn_deploy.training.descent import Descent
from cbn_deploy.training.evaluation import evaluate_predictions
from cbn_deploy.training.execution import Execution, check_recordable
from cbn_deploy.training.folder import check_same_run
from cbn_deploy.training.metrics_log import EpochMetrics
from cbn_deploy.training.predictions import Predictions, predict
from cbn_deploy.training.ranks import Ranks
from cbn_deploy.training.recipe import Recipe
from cbn_deploy.training.state import capture_state, load_state, restore_state, save_state

EVALUATION_BATCH = 2000


@dataclass(frozen=True)
class Plan:
    """One training of a fleet."""

    variant: str
    seed: int
    recipe: Recipe


class Trainee:
    """A training under way.

    Args:
        plan: what to train.
        data: its images.
        execution: on a CUDA device, with CUDA graphs.
        state: file of its state; if there is one, the training goes on from there.

    Raises:
        CbnError: the recipe asks for what is not done here, or the state is damaged or another training's.
    """

    def __init__(self, plan: Plan, data: LongTailedData, execution: Execution, state: Path) -> None:
        self.plan, self.data, self.execution, self._state = plan, data, execution, state
        recipe = plan.recipe
        _check_possible(plan, execution)
        torch.manual_seed(recipe.seed)
        self.model = create_model(recipe.architecture(len(data.class_names)), data.class_counts).to(execution.device)
        self.model.train()
        (self._stage,) = stages(recipe)
        self._losses = StageLosses(data.class_counts, execution.device)
        self._descent = Descent(self.model, recipe, execution, Ranks())
        self.history: list[EpochMetrics] = []
        self.completed, self.seconds, self.diverged = 0, 0.0, ""
        if state.is_file():
            self._restore()
        self._first = self.completed
        self._descent.prepare()
        self._stream = torch.cuda.Stream() if execution.device.type == "cuda" else None
        self._sums: Tensor | None = None
        self._parts: tuple[str, ...] = ()

    def takes_part(self, epoch: int) -> bool:
        """Whether epoch ``epoch`` (0-based) is still to be trained here; others of the fleet may not be as far."""
        return not self.diverged and epoch >= self._first

    def take(self, batch: TrainingBatch, epoch: int, step: int, steps: int) -> None:
        """Enqueue one step; nothing waits."""
        rate = self._stage.learning_rate(epoch, step, steps)
        recipe, classify = self.plan.recipe, self._losses.of(self._stage, epoch)
        batch = batch if recipe.two_views else replace(batch, weak=None)
        if self._stream is None:
            self._add(self._descent.take(batch, recipe, classify, rate))
            return
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            self._add(self._descent.take(batch, recipe, classify, rate))
        for tensor in (batch.strong, batch.weak, batch.labels):
            if tensor is not None:
                tensor.record_stream(self._stream)

    def _add(self, sums: StepSums) -> None:
        self._parts = sums.parts
        self._sums = sums.values.clone() if self._sums is None else self._sums + sums.values

    def end_epoch(self) -> Reading:
        """Its sums, on their way to the host."""
        sums, self._sums = self._sums, None
        if sums is None:
            raise RuntimeError("an epoch has to have a step")
        if self._stream is None:
            return Reading(sums, self._parts, None)
        with torch.cuda.stream(self._stream):
            host = torch.empty_like(sums, device="cpu", pin_memory=True).copy_(sums, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        return Reading(host, self._parts, event)

    def note(self, epoch: int, reading: Reading, seconds: float, steps: int) -> None:
        """Epoch ``epoch`` (0-based) is done."""
        means = reading.means()
        if not math.isfinite(means["total"]):
            self.diverged = f"The loss is not finite in epoch {epoch + 1}."
        self.completed, self.seconds = epoch + 1, self.seconds + seconds
        self.history.append(
            EpochMetrics(
                epoch=epoch + 1,
                loss=means["total"],
                classification_loss=means["classification"],
                split_loss=means.get("split"),
                consistency_loss=means.get("consistency"),
                train_accuracy=means["hits"],
                learning_rate=self._stage.learning_rate(epoch, steps - 1, steps),
                images_per_second=means["images"] / seconds,
                seconds=seconds,
            )
        )

    def predictions(self, batches: Sequence[tuple[Tensor, Tensor]]) -> Predictions:
        """On the test set, as the network is now."""
        if self._stream is not None:
            torch.cuda.current_stream().wait_stream(self._stream)
        found = predict(self.model, batches, self.execution.device)
        self.model.train()
        return found

    def score(self, batches: Sequence[tuple[Tensor, Tensor]]) -> float:
        """Top-1 now, which its last epoch's entry gets, too; 0 for logits that are not finite."""
        try:
            scores = evaluate_predictions(*self.predictions(batches), self.data.class_counts)
        except ValueError as error:
            self.diverged = str(error)
            return 0.0
        self.history[-1] = replace(
            self.history[-1],
            top1=scores.top1,
            many=scores.many,
            medium=scores.medium,
            few=scores.few,
            ece=scores.ece,
        )
        return scores.top1

    def save(self) -> None:
        """So that another call can go on."""
        state = capture_state(
            self.model,
            self._descent.optimizer,
            epoch=self.completed,
            recipe=self.plan.recipe.to_dict(),
            class_names=self.data.class_names,
            class_counts=self.data.class_counts,
            seconds=self.seconds,
        )
        # The history first: of a longer one the state takes what it needs.
        history = json.dumps([vars(epoch) for epoch in self.history])
        atomic_write_bytes(self._state.with_suffix(".json"), history.encode())
        save_state(self._state, state)

    def _restore(self) -> None:
        state = load_state(self._state)
        check_same_run(state, self.plan.recipe, self.data.class_names, self.data.class_counts)
        restore_state(state, self.model, self._descent.optimizer)
        self.completed, self.seconds = state.epoch, state.seconds
        self.history = _read_history(self._state.with_suffix(".json"))[: state.epoch]
        if len(self.history) != state.epoch:
            raise CheckpointError(
                f"{self._state} stands at epoch {state.epoch} and its history at {len(self.history)}; delete both to "
                "train this row anew."
            )

    def report(self, batches: Sequence[tuple[Tensor, Tensor]]) -> dict[str, Any]:
        """As `cbn-train` writes it."""
        return build_report(
            self.plan.recipe,
            self.data,
            self.model,
            self.history,
            self.predictions(batches),
            seconds=self.seconds,
            execution=self.execution,
        ).to_dict()


def _check_possible(plan: Plan, execution: Execution) -> None:
    recipe = plan.recipe
    check_recordable(execution, recipe, Ranks())
    refused = {
        "decoupled.share": len(stages(recipe)) > 1,
        "accumulate": recipe.schedule.accumulate > 1,
        "init_from": recipe.init_from is not None,
    }
    for name, is_asked_for in refused.items():
        if is_asked_for:
            raise RecipeError(f"{plan.variant} has {name}, which is not done side by side; train it with cbn-train.")


def _read_history(path: Path) -> list[EpochMetrics]:
    try:
        return [EpochMetrics(**row) for row in json.loads(path.read_text())]
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{path} is damaged ({error}); delete it and {path.stem}.pt to train this row anew."
        ) from error


@dataclass(frozen=True)
class Reading:
    """Sums of an epoch, on the host once ``event`` has happened."""

    sums: Tensor
    parts: tuple[str, ...]
    event: torch.cuda.Event | None

    def means(self) -> dict[str, float]:
        """Images, the share of hits, mean losses."""
        if self.event is not None:
            self.event.synchronize()
        return means_of(self.parts, self.sums)


@dataclass
class Group:
    """Trainings of one seed on the same images: they see the same batches.

    Raises:
        RecipeError: their recipes ask for other batches.
    """

    loader: TrainingLoader
    trainees: list[Trainee]
    test: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        first, *others = (trainee.plan for trainee in self.trainees)
        for plan in others:
            for name in ("data", "views", "sampling", "schedule"):
                if getattr(plan.recipe, name) != getattr(first.recipe, name):
                    raise RecipeError(
                        f"{plan.variant} and {first.variant} differ in {name}, so they cannot see the same batches; "
                        "train them in runs of their own."
                    )

    def load_test(self, device: torch.device) -> None:
        """The test images, normalised, on the device."""
        data = self.trainees[0].data
        batches = evaluation_batches(data.test, data.preprocessing, EVALUATION_BATCH)
        self.test = [(images.to(device), labels) for images, labels in batches]


def train_together(groups: Sequence[Group], epochs: int, *, evaluate_every: int, deadline: float) -> bool:
    """Epoch by epoch until ``epochs`` are done, or ``time.monotonic()`` passes ``deadline``: then False, states saved.

    Trainees that have completed more epochs than others wait until these are as far.
    """
    trainees = [trainee for group in groups for trainee in group.trainees]
    steps, completed = len(groups[0].loader), min(trainee.completed for trainee in trainees)
    pending: dict[int, Reading] = {}
    begin = time.monotonic()
    while completed < epochs and time.monotonic() < deadline:
        _enqueue_epoch(groups, completed)
        fresh = {number: t.end_epoch() for number, t in enumerate(trainees) if t.takes_part(completed)}
        # The means of the epoch before: to wait for this one's would leave the GPU without work.
        begin = _note(trainees, completed - 1, pending, begin, steps)
        pending, completed = fresh, completed + 1
        if completed % evaluate_every == 0 or completed == epochs:
            begin = _note(trainees, completed - 1, pending, begin, steps)
            pending = {}
            _evaluate(groups, completed, epochs)
    _note(trainees, completed - 1, pending, begin, steps)
    for trainee in trainees:
        trainee.save()
    return completed >= epochs


def _enqueue_epoch(groups: Iterable[Group], epoch: int) -> None:
    for step, batches in enumerate(zip(*(group.loader.epoch(epoch) for group in groups), strict=True)):
        for group, batch in zip(groups, batches, strict=True):
            for trainee in group.trainees:
                if trainee.takes_part(epoch):
                    trainee.take(batch, epoch, step, len(group.loader))


def _note(trainees: Sequence[Trainee], epoch: int, readings: Mapping[int, Reading], begin: float, steps: int) -> float:
    """Wait for an epoch's sums; seconds count from ``begin``. Returns the time now."""
    for reading in readings.values():
        reading.means()
    now = time.monotonic()
    for number, reading in readings.items():
        trainees[number].note(epoch, reading, now - begin, steps)
    return now if readings else begin


def _evaluate(groups: Sequence[Group], completed: int, epochs: int) -> None:
    for group in groups:
        taking_part = [trainee for trainee in group.trainees if trainee.takes_part(completed - 1)]
        scores = {t.plan.variant: t.score(group.test) for t in taking_part}
        line = ", ".join(f"{variant} {100 * top1:.2f}" for variant, top1 in scores.items())
        seconds = group.trainees[0].seconds
        print(f"epoch {completed}/{epochs}, {seconds:.0f} s, seed {group.trainees[0].plan.seed}: {line}", flush=True)
        for trainee in taking_part:
            trainee.save()
