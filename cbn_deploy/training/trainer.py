"""Train a recipe: Algorithm 1, epoch after epoch, so that nothing but the present epoch can ever be lost."""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from cbn_deploy.checkpoint import save_checkpoint
from cbn_deploy.data import (
    LongTailedData,
    TrainingBatch,
    TrainingLoader,
    evaluation_batches,
    load_data,
    training_loader,
)
from cbn_deploy.errors import DataError, RecipeError, RuntimeUnavailableError, TrainingError
from cbn_deploy.models import create_model
from cbn_deploy.training.artifacts import EVALUATION_BATCH, build_checkpoint, build_report, device_name, run_title
from cbn_deploy.training.averages import EpochAverages
from cbn_deploy.training.classification import Classification
from cbn_deploy.training.decoupled import Stage, StageSwitch, stages
from cbn_deploy.training.evaluation import Evaluation, evaluate_predictions
from cbn_deploy.training.folder import RunFolder, check_same_run
from cbn_deploy.training.interrupts import deferred_interrupt
from cbn_deploy.training.metrics_log import EpochMetrics, append_metrics, keep_epochs
from cbn_deploy.training.optimizer import make_optimizer
from cbn_deploy.training.predictions import predict
from cbn_deploy.training.progress import Progress, RunPlan, StepMetrics
from cbn_deploy.training.recipe import Recipe
from cbn_deploy.training.report import write_report
from cbn_deploy.training.state import capture_state, restore_state, save_state
from cbn_deploy.training.step import step_losses

__all__ = ["TrainingResult", "train"]


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """Where the finished run lies and how good its last epoch is."""

    checkpoint: Path
    report: Path
    evaluation: Evaluation


def train(
    recipe: Recipe,
    data_dir: Path | None,
    out_dir: Path,
    *,
    resume: bool = False,
    progress: Progress | None = None,
    workers: int = 0,
    device: str = "auto",
) -> TrainingResult:
    """Run ``recipe`` from its first epoch, or from the last completed one, to its report.

    The result depends on recipe and data alone (on one machine, with one number of threads): neither on ``workers``
    nor on how often the run was interrupted and resumed.

    Args:
        recipe: what to do.
        data_dir: where the images are; ``None`` for digits-lt.
        out_dir: gets model.pt, last.pt, metrics.jsonl, report.json, report.html and plots/.
        resume: go on with the run in ``out_dir``.
        progress: is told what happens.
        workers: processes that prepare batches; 0 prepares them in this one.
        device: "auto" (CUDA if there is one), "cpu" or "cuda".

    Raises:
        CbnError: RecipeError, DataError, OutputError, CheckpointError or TrainingError, see :mod:`cbn_deploy.errors`.
        KeyboardInterrupt: Ctrl-C; the completed epochs are on disk.
    """
    folder = RunFolder(Path(out_dir))
    state = folder.load_state() if resume else None
    if state is None:
        folder.check_vacant()
    data = load_data(recipe.data, data_dir)
    run = _Run(recipe, data, folder, _device(device), progress or Progress(), workers)
    folder.check_space(run.model)
    if state is not None:
        check_same_run(state, recipe, data.class_names, data.class_counts)
        restore_state(state, run.model, run.optimizer)
        run.completed_epochs, run.seconds = state.epoch, state.seconds
    else:
        run.save()
    run.train_epochs()
    return run.finish()


class _Run:
    """The live objects of one run."""

    def __init__(
        self,
        recipe: Recipe,
        data: LongTailedData,
        folder: RunFolder,
        device: torch.device,
        progress: Progress,
        workers: int,
    ) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.data, self.folder, self.device, self.progress = recipe, data, folder, device, progress
        self.workers = workers
        _check_counts(data)
        self.model = _create_model(recipe, data).to(device)
        self.optimizer = make_optimizer(self.model, recipe.optimizer)
        self.stages = StageSwitch(recipe, self.model, self.optimizer)
        self.stage = stages(recipe)[0]
        self.loader = self._make_loader(self.stage)
        self.completed_epochs = 0
        self.seconds = 0.0

    def train_epochs(self) -> None:
        """Every epoch that is not yet done; after each, its metrics and the state are on disk."""
        epochs = self.recipe.schedule.epochs
        self.progress.run_started(
            RunPlan(
                title=run_title(self.recipe),
                completed_epochs=self.completed_epochs,
                epochs=epochs,
                steps_per_epoch=len(self.loader),
                training_images=len(self.data.train),
                device=device_name(self.device),
            )
        )
        keep_epochs(self.folder.metrics, self.completed_epochs)
        for epoch in range(self.completed_epochs, epochs):
            metrics = self.train_epoch(epoch)
            with deferred_interrupt():
                append_metrics(self.folder.metrics, metrics)
                self.completed_epochs = epoch + 1
                self.seconds += metrics.seconds
                self.save()
                self.progress.epoch_done(metrics)

    def train_epoch(self, epoch: int) -> EpochMetrics:
        """One pass over the training set (``epoch`` is 0-based) and, where due, over the test set."""
        classify = self._enter_stage(epoch)
        averages = EpochAverages()
        start = time.perf_counter()
        for step, batch in enumerate(self.loader.epoch(epoch)):
            self.train_step(epoch, step, batch, classify, averages)
            speed = averages.images / (time.perf_counter() - start)
            self.progress.step_done(
                StepMetrics(
                    epoch=epoch + 1,
                    step=step + 1,
                    loss=averages.loss,
                    accuracy=averages.accuracy,
                    images_per_second=speed,
                )
            )
        training_seconds = time.perf_counter() - start
        metrics = EpochMetrics(
            epoch=epoch + 1,
            loss=averages.loss,
            classification_loss=averages.classification,
            split_loss=averages.split,
            consistency_loss=averages.consistency,
            train_accuracy=averages.accuracy,
            learning_rate=float(self.optimizer.param_groups[0]["lr"]),
            images_per_second=averages.images / training_seconds,
            seconds=training_seconds,
        )
        if not self._evaluation_is_due(epoch):
            return metrics
        scores = self.evaluate(epoch)
        return dataclasses.replace(
            metrics,
            seconds=time.perf_counter() - start,
            top1=scores.top1,
            many=scores.many,
            medium=scores.medium,
            few=scores.few,
            ece=scores.ece,
        )

    def train_step(
        self, epoch: int, step: int, batch: TrainingBatch, classify: Classification, averages: EpochAverages
    ) -> None:
        """Losses, gradients, one update (lines 3 to 9 of Algorithm 1)."""
        learning_rate = self.stage.learning_rate(epoch, step, len(self.loader))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        batch = _to_device(batch, self.device)
        losses = step_losses(self.model, batch, self.stage.recipe, classify)
        averages.add(losses, batch.labels)
        if not math.isfinite(averages.loss):
            raise _diverged(f"The loss is not finite in epoch {epoch + 1}, step {step + 1}", self.recipe)
        self.optimizer.zero_grad(set_to_none=True)
        losses.total.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.optimizer.step()

    def evaluate(self, epoch: int) -> Evaluation:
        """Metrics on the test set."""
        batches = evaluation_batches(self.data.test, self.data.preprocessing, EVALUATION_BATCH)
        logits, labels = predict(self.model, batches, self.device)
        try:
            return evaluate_predictions(logits, labels, self.data.class_counts)
        except ValueError as error:
            raise _diverged(
                f"The model's test predictions are not finite after epoch {epoch + 1}", self.recipe
            ) from error

    def save(self) -> None:
        """Write last.pt."""
        state = capture_state(
            self.model,
            self.optimizer,
            epoch=self.completed_epochs,
            recipe=self.recipe.to_dict(),
            class_names=self.data.class_names,
            class_counts=self.data.class_counts,
            seconds=self.seconds,
        )
        save_state(self.folder.state, state)

    def finish(self) -> TrainingResult:
        """Write the report and, last of all, model.pt: where it is, the run is complete."""
        self.progress.stage("Writing the report and model.pt")
        history = keep_epochs(self.folder.metrics, self.completed_epochs)
        report = build_report(self.recipe, self.data, self.model, history, seconds=self.seconds, device=self.device)
        write_report(report, self.folder.path)
        save_checkpoint(self.folder.model, build_checkpoint(self.recipe, self.data, self.model))
        return TrainingResult(checkpoint=self.folder.model, report=self.folder.report, evaluation=report.evaluation)

    def _enter_stage(self, epoch: int) -> Classification:
        stage = self.stages.enter(epoch)
        if stage != self.stage:
            self.stage, self.loader = stage, self._make_loader(stage)
        return stage.classification_loss(self.data.class_counts, epoch, self.device)

    def _make_loader(self, stage: Stage) -> TrainingLoader:
        return training_loader(
            self.data,
            stage.recipe.views,
            batch_size=stage.recipe.schedule.batch_size,
            seed=stage.recipe.seed,
            workers=self.workers,
            two_views=stage.recipe.two_views,
            sampling=stage.recipe.sampling,
        )

    def _evaluation_is_due(self, epoch: int) -> bool:
        schedule = self.recipe.schedule
        return (epoch + 1) % schedule.evaluate_every == 0 or epoch + 1 == schedule.epochs


def _check_counts(data: LongTailedData) -> None:
    if 0 in data.class_counts:
        empty = data.class_names[data.class_counts.index(0)]
        raise DataError(f"Class {empty!r} has no training images; add some or remove the class.")


def _create_model(recipe: Recipe, data: LongTailedData) -> nn.Module:
    try:
        return create_model(recipe.architecture(len(data.class_names)), data.class_counts)
    except ValueError as error:
        raise RecipeError(f"{recipe.model} cannot be built for {data.name}: {error}.") from error


def _device(name: str) -> torch.device:
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device must be 'auto', 'cpu' or 'cuda', got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise RuntimeUnavailableError("There is no CUDA device that this torch can use; train with --device cpu.")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    # Fixed algorithms, so that the seed decides the result.
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    return torch.device("cuda")


def _to_device(batch: TrainingBatch, device: torch.device) -> TrainingBatch:
    weak = None if batch.weak is None else batch.weak.to(device)
    return TrainingBatch(strong=batch.strong.to(device), weak=weak, labels=batch.labels.to(device))


def _diverged(what: str, recipe: Recipe) -> TrainingError:
    advice = [f"lower the learning rate (--set lr={recipe.optimizer.lr / 5:g})"]
    if recipe.schedule.warmup_epochs == 0:
        advice.append("warm up (--set schedule.warmup_epochs=2)")
    if not recipe.is_batch_norm and recipe.norm.statistics != "batch_em":
        advice.append("train with batch statistics (--set statistics=batch_em)")
    return TrainingError(f"{what}; {' or '.join(advice)} in a new --out.")
