"""Whole training steps of a ResNet-32, optimizer included, as they are and recorded: the same result, and how fast."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from benchmarks.gpu.results import Clock, Section, SkippedError
from cbn_deploy.data import TrainingBatch
from cbn_deploy.models import create_model
from cbn_deploy.training import Recipe, apply_settings, get_recipe
from cbn_deploy.training.classification import classification_loss
from cbn_deploy.training.descent import Descent
from cbn_deploy.training.execution import Execution
from cbn_deploy.training.ranks import Ranks

COUNTS = (5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50)
ROWS = {"bn": "baseline", "cbn": "cbn", "dual path": "cbn-sbn-dpl"}
STEPS_COMPARED = 6
# Relative to a tensor's largest value, after a few steps of different rounding.
ALLOWED = 1e-3


def training_steps(section: Section, clock: Clock, device: str) -> None:
    """Rows of the paper's Table 2: parity of recorded steps in float32, then times by precision and layout."""
    if device != "cuda":
        raise SkippedError("CUDA graphs are recorded on a GPU only")
    for name, row in ROWS.items():
        section.rows.append({"step": name} | _parity(recipe_of(row, "fp32")))
    for precision in ("fp32", "bf16"):
        for channels_last in (False, True):
            for name, row in ROWS.items():
                if clock.over():
                    return
                section.rows.append({"step": name} | _times(recipe_of(row, precision), channels_last=channels_last))


def recipe_of(row: str, precision: str) -> Recipe:
    """A row of Table 2."""
    return apply_settings(get_recipe(f"cifar10-lt/rho100/{row}"), [f"precision={precision}"])


class Training:
    """A network and its steps on random images."""

    def __init__(self, recipe: Recipe, *, recorded: bool, channels_last: bool = False, batch: int = 128) -> None:
        device = torch.device("cuda", 0)
        torch.manual_seed(0)
        self.model = create_model(recipe.architecture(len(COUNTS)), COUNTS).to(device).train()
        execution = Execution(device=device, cuda_graphs=recorded, channels_last=channels_last)
        self._descent = Descent(self.model, recipe, execution, Ranks())
        self._descent.prepare()
        self._recipe, self._classify = recipe, classification_loss(recipe.loss, COUNTS, device=device)
        images = torch.randn(2, batch, 3, 32, 32, device=device)
        labels = torch.randint(len(COUNTS), (batch,), device=device)
        self._batch = TrainingBatch(images[0], images[1] if recipe.two_views else None, labels)

    def step(self) -> Tensor:
        """Sums of its losses."""
        return self._descent.take(self._batch, self._recipe, self._classify, 0.01).values


def _parity(recipe: Recipe) -> dict[str, object]:
    """State dicts after a few steps; without TF32, whose rounding a network amplifies."""
    states = []
    for recorded in (False, True):
        training = Training(recipe, recorded=recorded, batch=32)
        for _ in range(STEPS_COMPARED):
            training.step()
        states.append({name: value.double() for name, value in training.model.state_dict().items()})
    errors = {
        name: ((states[1][name] - value).abs().max() / value.abs().max().clamp_min(1e-6)).item()
        for name, value in states[0].items()
    }
    worst = max(errors, key=lambda name: errors[name] if errors[name] == errors[name] else float("inf"))
    return {"worst": worst, "error": errors[worst], "ok": errors[worst] <= ALLOWED}


def _times(recipe: Recipe, *, channels_last: bool) -> dict[str, object]:
    row: dict[str, object] = {"precision": recipe.precision, "layout": "NHWC" if channels_last else "NCHW"}
    for recorded in (False, True):
        training = Training(recipe, recorded=recorded, channels_last=channels_last)
        for _ in range(5):
            training.step()
        row["recorded ms" if recorded else "ms"] = 1e3 * seconds_a_step(training, 20)
    return row


def seconds_a_step(training: Training, steps: int) -> float:
    """On average, from the first one's launch to the last one's end."""
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(steps):
        training.step()
    torch.cuda.synchronize()
    return (time.perf_counter() - begin) / steps
