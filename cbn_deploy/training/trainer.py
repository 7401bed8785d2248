"""Train a recipe: Algorithm 1, epoch after epoch, so that nothing but the present epoch can ever be lost."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from cbn_deploy.checkpoint import save_checkpoint
from cbn_deploy.data import LongTailedData, TrainingLoader, evaluation_batches, load_data, training_loader
from cbn_deploy.data.sharding import Sharding
from cbn_deploy.errors import DataError, RecipeError, TrainingError
from cbn_deploy.models import create_model
from cbn_deploy.norm import synchronize
from cbn_deploy.training.artifacts import EVALUATION_BATCH, build_checkpoint, build_report, device_name, run_title
from cbn_deploy.training.averages import EpochAverages
from cbn_deploy.training.classification import Classification
from cbn_deploy.training.comparison import Comparison
from cbn_deploy.training.decoupled import Stage, StageLosses, StageSwitch, stages
from cbn_deploy.training.descent import Descent
from cbn_deploy.training.evaluation import Evaluation, evaluate_predictions
from cbn_deploy.training.execution import Execution, check_recordable, choose_device
from cbn_deploy.training.folder import RunFolder, check_same_run
from cbn_deploy.training.interrupts import deferred_interrupt
from cbn_deploy.training.metrics_log import EpochMetrics, append_metrics, keep_epochs
from cbn_deploy.training.predictions import gather_predictions, predict
from cbn_deploy.training.pretrained import load_pretrained
from cbn_deploy.training.progress import Progress, RunPlan, StepMetrics
from cbn_deploy.training.ranks import Ranks
from cbn_deploy.training.recipe import Recipe
from cbn_deploy.training.report import write_report
from cbn_deploy.training.state import RunState, capture_state, restore_state, save_state

__all__ = ["TrainingResult", "train"]


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """Where the finished run lies, how good its last epoch is, and the paper's figures for it, if it has any."""

    checkpoint: Path
    report: Path
    evaluation: Evaluation
    comparison: Comparison | None


def train(
    recipe: Recipe,
    data_dir: Path | None,
    out_dir: Path,
    *,
    resume: bool = False,
    progress: Progress | None = None,
    workers: int = 0,
    device: str = "auto",
    channels_last: bool = False,
    compile: bool = False,
    cuda_graphs: bool = False,
    device_views: bool = False,
) -> TrainingResult:
    """Run ``recipe`` from its first epoch, or from the last completed one, to its report.

    The result depends on recipe and data alone (on one machine, with one number of threads): neither on ``workers``
    nor on how often the run was interrupted and resumed. Inside :func:`cbn_deploy.training.ranks.joined_ranks` all
    ranks train the run together, which rounds differently but else changes nothing; the first one writes the files.

    Args:
        recipe: what to do.
        data_dir: where the images are; ``None`` for digits-lt.
        out_dir: gets model.pt, last.pt, metrics.jsonl, report.json, report.html and plots/.
        resume: go on with the run in ``out_dir``.
        progress: is told what happens.
        workers: processes that prepare batches; 0 prepares them in this one.
        device: "auto" (CUDA if there is one), "cpu" or "cuda".
        channels_last: keep images and weights of convolutions as (B, H, W, C) in memory.
        compile: run the network through ``torch.compile``.
        cuda_graphs: record a step as a CUDA graph and replay it.
        device_views: make the views of images in memory on the device, with the same pixels.

    Raises:
        CbnError: RecipeError, DataError, OutputError, CheckpointError or TrainingError, see :mod:`cbn_deploy.errors`.
        KeyboardInterrupt: Ctrl-C; the completed epochs are on disk.
    """
    ranks, folder = Ranks.current(), RunFolder(Path(out_dir))
    execution = Execution(
        device=choose_device(device),
        workers=workers,
        channels_last=channels_last,
        compile=compile,
        cuda_graphs=cuda_graphs,
        device_views=device_views,
    )
    check_recordable(execution, recipe, ranks)
    with contextlib.ExitStack() as held:
        ranks.from_first(lambda: held.enter_context(folder.held()))
        return _train(recipe, data_dir, folder, resume, execution, ranks, progress or Progress())


def _train(
    recipe: Recipe,
    data_dir: Path | None,
    folder: RunFolder,
    resume: bool,
    execution: Execution,
    ranks: Ranks,
    progress: Progress,
) -> TrainingResult:
    state = ranks.from_first(lambda: _earlier_state(folder, resume))
    data = load_data(recipe.data, data_dir)
    run = _Run(recipe, data, folder, execution, ranks, progress)
    if ranks.is_first:
        folder.check_space(run.model)
    if state is not None:
        check_same_run(state, recipe, data.class_names, data.class_counts)
        restore_state(state, run.model, run.descent.optimizer)
        run.completed_epochs, run.seconds = state.epoch, state.seconds
    else:
        run.load_initial_weights()
        run.save()
    run.train_epochs()
    return ranks.from_first(run.finish)


def _earlier_state(folder: RunFolder, resume: bool) -> RunState | None:
    if resume:
        return folder.load_state()
    folder.check_vacant()
    return None


class _Run:
    """The live objects of one run."""

    def __init__(
        self,
        recipe: Recipe,
        data: LongTailedData,
        folder: RunFolder,
        execution: Execution,
        ranks: Ranks,
        progress: Progress,
    ) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.data, self.folder, self.execution, self.ranks = recipe, data, folder, execution, ranks
        self.progress = progress if ranks.is_first else Progress()
        _check_counts(data)
        self.model = _create_model(recipe, data).to(execution.device)
        if ranks.world_size > 1:
            synchronize(self.model)
        self.descent = Descent(self.model, recipe, execution, ranks)
        self.stages = StageSwitch(recipe, self.model, self.descent.optimizer)
        self.stage = stages(recipe)[0]
        self.loader = self._make_loader(self.stage)
        self.losses = StageLosses(data.class_counts, execution.device)
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
                device=device_name(self.execution.device),
            )
        )
        if self.ranks.is_first:
            keep_epochs(self.folder.metrics, self.completed_epochs)
        self.descent.prepare()
        for epoch in range(self.completed_epochs, epochs):
            metrics = self.train_epoch(epoch)
            with deferred_interrupt():
                if self.ranks.is_first:
                    append_metrics(self.folder.metrics, metrics)
                self.completed_epochs = epoch + 1
                self.seconds += metrics.seconds
                self.save()
                self.progress.epoch_done(metrics)

    def train_epoch(self, epoch: int) -> EpochMetrics:
        """One pass over the training set (``epoch`` is 0-based) and, where due, over the test set."""
        classify = self._enter_stage(epoch)
        averages, step = EpochAverages(self.ranks), 0
        start = time.perf_counter()
        for batch in self.loader.epoch(epoch):
            portion = batch.to(self.execution.device)
            learning_rate = self.stage.learning_rate(epoch, step, len(self.loader))
            averages.add(self.descent.take(portion, self.stage.recipe, classify, learning_rate))
            if not portion.ends_step:
                continue
            step += 1
            if step % self.execution.steps_between_readings == 0 or step == len(self.loader):
                if not math.isfinite(averages.loss):
                    raise _diverged(f"The loss is not finite in epoch {epoch + 1}, step {step}", self.stage)
                self.progress.step_done(
                    StepMetrics(
                        epoch=epoch + 1,
                        step=step,
                        loss=averages.loss,
                        accuracy=averages.accuracy,
                        images_per_second=averages.images / (time.perf_counter() - start),
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
            learning_rate=float(self.descent.optimizer.param_groups[0]["lr"]),
            images_per_second=averages.images / training_seconds,
            seconds=training_seconds,
        )
        if not self._evaluation_is_due(epoch):
            return metrics
        scores = self.evaluate(epoch)
        if scores is None:
            return metrics
        return dataclasses.replace(
            metrics,
            seconds=time.perf_counter() - start,
            top1=scores.top1,
            many=scores.many,
            medium=scores.medium,
            few=scores.few,
            ece=scores.ece,
        )

    def evaluate(self, epoch: int) -> Evaluation | None:
        """Metrics on the test set, which the ranks divide among them; ``None`` but on the first."""
        rank, world_size, images = self.ranks.rank, self.ranks.world_size, self.data.test
        own = None
        if rank * EVALUATION_BATCH < len(images):
            batches = evaluation_batches(
                images,
                self.data.preprocessing,
                EVALUATION_BATCH,
                rank=rank,
                world_size=world_size,
                workers=self.execution.workers,
            )
            own = predict(self.model, batches, self.execution.device)
        predictions = gather_predictions(self.ranks, own)
        if predictions is None:
            return None
        try:
            return evaluate_predictions(*predictions, self.data.class_counts)
        except ValueError as error:
            raise _diverged(
                f"The model's test predictions are not finite after epoch {epoch + 1}", self.stage
            ) from error

    def load_initial_weights(self) -> None:
        """Start from the weights that the recipe names, if it names any."""
        if self.recipe.init_from is not None:
            architecture = self.recipe.architecture(len(self.data.class_names))
            load_pretrained(self.model, architecture, Path(self.recipe.init_from), self.data.class_counts)

    def save(self) -> None:
        """Write last.pt, on the first rank; nothing in it tells how many there are."""
        if not self.ranks.is_first:
            return
        state = capture_state(
            self.model,
            self.descent.optimizer,
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
        images, execution = self.data.test, self.execution
        batches = evaluation_batches(images, self.data.preprocessing, EVALUATION_BATCH, workers=execution.workers)
        predictions = predict(self.model, batches, execution.device)
        report = build_report(
            self.recipe, self.data, self.model, history, predictions, seconds=self.seconds, execution=execution
        )
        write_report(report, self.folder)
        save_checkpoint(self.folder.model, build_checkpoint(self.recipe, self.data, self.model, predictions[0]))
        return TrainingResult(
            checkpoint=self.folder.model,
            report=self.folder.report,
            evaluation=report.evaluation,
            comparison=report.comparison,
        )

    def _enter_stage(self, epoch: int) -> Classification:
        stage = self.stages.enter(epoch)
        if stage != self.stage:
            self.stage, self.loader = stage, self._make_loader(stage)
            self.descent.prepare()
        return self.losses.of(stage, epoch)

    def _make_loader(self, stage: Stage) -> TrainingLoader:
        return training_loader(
            self.data,
            stage.recipe.views,
            batch_size=stage.recipe.schedule.batch_size,
            seed=stage.recipe.seed,
            workers=self.execution.workers,
            two_views=stage.recipe.two_views,
            sampling=stage.recipe.sampling,
            sharding=Sharding(
                rank=self.ranks.rank,
                world_size=self.ranks.world_size,
                accumulate=stage.recipe.schedule.accumulate,
            ),
            device=self.execution.device,
            device_views=self.execution.device_views,
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


def _diverged(what: str, stage: Stage) -> TrainingError:
    recipe = stage.recipe
    key = "decoupled.lr" if stage.classifier_only else "lr"
    advice = [f"lower the learning rate (--set {key}={recipe.optimizer.lr / 5:g})"]
    if not stage.classifier_only:  # which has no warm-up, and whose features are fixed
        if recipe.schedule.warmup_epochs == 0 and stage.epochs > 2:  # a warm-up must leave an epoch
            advice.append("warm up (--set schedule.warmup_epochs=2)")
        if not recipe.is_batch_norm and recipe.norm.statistics != "batch_em":
            advice.append("train with batch statistics (--set statistics=batch_em)")
    return TrainingError(f"{what}; {' or '.join(advice)} in a new --out.")
