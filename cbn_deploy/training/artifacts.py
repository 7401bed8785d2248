"""What a finished run leaves behind: ``model.pt`` and the report."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cbn_deploy.checkpoint import Checkpoint
from cbn_deploy.data import LongTailedData, evaluation_batches
from cbn_deploy.machine import package_versions
from cbn_deploy.norm import mixture_health
from cbn_deploy.runtime import ModelDescription
from cbn_deploy.runtime.familiarity import energy_quantiles
from cbn_deploy.training.comparison import compare
from cbn_deploy.training.decoupled import training_prior
from cbn_deploy.training.evaluation import evaluate_predictions, most_confused
from cbn_deploy.training.execution import Execution
from cbn_deploy.training.metrics_log import EpochMetrics
from cbn_deploy.training.predictions import Predictions
from cbn_deploy.training.recipe import Recipe
from cbn_deploy.training.report_data import RunReport

__all__ = [
    "EVALUATION_BATCH",
    "balanced_sample",
    "build_checkpoint",
    "build_report",
    "device_name",
    "run_title",
    "tool_versions",
]

EVALUATION_BATCH = 256
_SAMPLE_IMAGES = 128
_SAMPLE_BYTES = 4 * 2**20


def build_checkpoint(
    recipe: Recipe, data: LongTailedData, model: nn.Module, test_logits: NDArray[np.float32]
) -> Checkpoint:
    """The trained model with its description and up to 128 real test images (4 MB), balanced over the classes.

    ``test_logits`` (n, K) of the whole test set: how familiar images look is known best from all of it.
    """
    architecture = recipe.architecture(len(data.class_names))
    description = ModelDescription(
        class_names=data.class_names,
        class_counts=data.class_counts,
        preprocessing=data.preprocessing,
        architecture=architecture.name,
        components=0 if architecture.norm is None else architecture.norm.components,
        training_prior=training_prior(recipe, data.class_counts),
        tool_versions=tool_versions(),
        data_seed=recipe.data.seed,
    )
    quantiles = energy_quantiles(test_logits, description.shot_groups)
    return Checkpoint(
        architecture=architecture,
        description=replace(description, energy_quantiles=quantiles),
        state_dict=model.state_dict(),
        sample_images=_sample_images(data),
    )


def build_report(
    recipe: Recipe,
    data: LongTailedData,
    model: nn.Module,
    history: Sequence[EpochMetrics],
    predictions: Predictions,
    *,
    seconds: float,
    execution: Execution,
) -> RunReport:
    """Everything that the report shows; ``predictions`` are the model's on the test set."""
    logits, labels = predictions
    device = execution.device
    batches = evaluation_batches(data.test, data.preprocessing, EVALUATION_BATCH, workers=execution.workers)
    one = recipe.is_batch_norm or recipe.norm.components == 1  # a single Gaussian has nothing to tell
    health = {} if one else mixture_health(model, (images.to(device) for images, _ in batches))
    return RunReport(
        recipe=recipe.to_dict(),
        settings=recipe.used_settings(),
        title=run_title(recipe),
        evaluation=evaluate_predictions(logits, labels, data.class_counts),
        comparison=compare(recipe, data.class_counts),
        confusions=most_confused(logits, labels),
        history=tuple(history),
        class_names=data.class_names,
        class_counts=data.class_counts,
        test_images=len(data.test),
        mixture=health,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        seconds=seconds,
        device=device_name(device),
        threads=torch.get_num_threads(),
        versions=tool_versions(),
    )


def run_title(recipe: Recipe) -> str:
    """Recipe, network, normalisation and paths in words: "digits-lt: resnet20, 4 Gaussians a layer, dual path"."""
    parts = [recipe.model, *_normalisation(recipe)]
    if recipe.two_views and not recipe.dual_path:
        parts.append("two consistent views")
    if recipe.init_from is not None:
        parts.append(f"from {Path(recipe.init_from).name}")
    if recipe.decoupled.share > 0:
        parts.append(f"classifier alone in the last {recipe.decoupled.share:.0%} of the epochs")
    return f"{recipe.name}: {', '.join(parts)}"


def _normalisation(recipe: Recipe) -> tuple[str, ...]:
    if recipe.is_batch_norm:
        return ("plain batch norm",)
    norm = recipe.norm
    compound = "batch norm (1 Gaussian)" if norm.components == 1 else f"{norm.components} Gaussians a layer"
    if not recipe.dual_path:
        return compound, "compound path only"
    if norm.split_groups is not None:
        compound += f" beside split batch norm of {norm.split_groups} class groups"
    return compound, "dual path" if recipe.two_views else "dual path without consistency"


def device_name(device: torch.device) -> str:
    """ "cpu", or the accelerator's product name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def tool_versions() -> dict[str, str]:
    """Versions of what makes the numbers."""
    return {
        **package_versions(["cbn-deploy"]),  # absent from a source tree that was never installed
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def balanced_sample(labels: NDArray[np.int64], limit: int) -> NDArray[np.int64]:
    """Indices of at most ``limit`` images, as evenly over the classes as they allow: (n,), ascending.

    Every class gives its first image before any gives its second.
    """
    order = np.argsort(labels, kind="stable")
    sizes = np.bincount(labels)
    starts = np.cumsum(sizes) - sizes
    rank_in_class = np.arange(len(labels)) - np.repeat(starts, sizes)
    return np.sort(order[np.argsort(rank_in_class, kind="stable")[:limit]])


def _sample_images(data: LongTailedData) -> torch.Tensor:
    image_bytes = data.preprocessing.height * data.preprocessing.width * 3
    limit = max(1, min(_SAMPLE_IMAGES, _SAMPLE_BYTES // image_bytes))
    chosen = balanced_sample(data.test.labels, limit)
    return torch.from_numpy(np.stack([data.test.pixels(int(index)) for index in chosen]))
