"""What the ranks of a test compute: single steps in float64, and whole runs."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from torch import Tensor

from cbn_deploy.data import TrainingBatch
from cbn_deploy.data.sharding import Sharding
from cbn_deploy.models import create_model
from cbn_deploy.norm import synchronize
from cbn_deploy.training import RECIPES, Progress, Recipe, apply_settings, train
from cbn_deploy.training.averages import EpochAverages
from cbn_deploy.training.classification import classification_loss
from cbn_deploy.training.descent import Descent
from cbn_deploy.training.execution import Execution
from cbn_deploy.training.ranks import Ranks

COUNTS = (40, 10, 3, 2)
SIZES = (8, 7, 3, 1)  # of the batches, one after another
BASE = ("model=resnet8", "loss.paths=compound+split", "batch_size=8")
STEPS: dict[str, tuple[str, ...]] = {
    "both paths": (),
    "both paths, no consistency": ("loss.consistency_weight=0",),
    "split path with tables of its own": ("norm.split_affine=separate",),
    "compound path": ("loss.paths=compound", "loss.class_weights=inverse"),
    "batch norm": ("model=resnet8-bn", "loss.paths=compound"),
    "batch norm, two views": ("model=resnet8-bn", "loss.paths=two_views"),
    "three portions": ("accumulate=3",),
    "batch norm, three portions": ("model=resnet8-bn", "loss.paths=compound", "accumulate=3"),
}


def some_steps(
    name: str, ranks: Ranks, execution: Execution | None = None, settings: tuple[str, ...] = ()
) -> dict[str, Tensor]:
    """State dict of a network after a few steps of this rank and the others, and the averages that were logged."""
    recipe = apply_settings(RECIPES["image-folder"], [*BASE, *STEPS[name], *settings])
    torch.manual_seed(0)
    model = create_model(recipe.architecture(len(COUNTS)), COUNTS).train()
    dtype = torch.float64 if recipe.precision == "fp32" else torch.float32
    model.to(dtype)
    if ranks.world_size > 1:
        synchronize(model)
    descent = Descent(model, recipe, execution or Execution(device=torch.device("cpu")), ranks)
    descent.prepare()
    averages = EpochAverages(ranks)
    classify = classification_loss(recipe.loss, COUNTS)
    for number, size in enumerate(SIZES):
        for portion in _portions(recipe, number, size, ranks, dtype):
            averages.add(descent.take(portion, recipe, classify, 0.05))
    assert averages.images == sum(SIZES)
    logged = torch.tensor([averages.loss, averages.classification, averages.accuracy], dtype=torch.float64)
    return {"logged": logged, **model.state_dict()}


def _portions(recipe: Recipe, number: int, size: int, ranks: Ranks, dtype: torch.dtype) -> list[TrainingBatch]:
    generator = torch.Generator().manual_seed(number)
    strong, weak = (torch.randn(size, 3, 16, 16, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2))
    labels = torch.randint(len(COUNTS), (size,), generator=generator)
    sharding = Sharding(rank=ranks.rank, world_size=ranks.world_size, accumulate=recipe.schedule.accumulate)
    shares = [slice(share.start, share.stop) for share in sharding.shares(size)]
    return [
        TrainingBatch(strong[s], weak[s], labels[s], len(labels[s]) / size, ends_step=s is shares[-1]) for s in shares
    ]


class KeepFirstEpoch(Progress):
    """Copies the run's folder as it is when the first epoch is done."""

    def __init__(self, run: Path, copy: Path) -> None:
        self.run, self.copy = run, copy

    def epoch_done(self, metrics) -> None:
        if metrics.epoch == 1:
            shutil.copytree(self.run, self.copy)


def on_this_rank(rank: int, world_size: int, folder: Path, recipe: Recipe, photos: Path) -> None:
    """Steps, a whole run, and one that a single process has begun."""
    ranks = Ranks.current()
    assert ranks == Ranks(rank=rank, world_size=world_size)
    torch.save({name: some_steps(name, ranks) for name in STEPS}, folder / f"steps{rank}.pt")
    run = folder / "run"
    result = train(recipe, photos, run, progress=KeepFirstEpoch(run, folder / "first epoch"), device="cpu")
    assert result.evaluation.top1 is not None
    assert result.checkpoint == run / "model.pt"
    train(recipe, photos, folder / "begun alone", resume=True, device="cpu")
