"""What cbn-eval prints about models with very many classes and layers, and with names that look like markup."""

from __future__ import annotations

import io

import numpy as np
from rich.console import Console

from cbn_deploy.cli.evaluation_tables import tables
from cbn_deploy.norm import MixtureHealth
from cbn_deploy.runtime import ModelDescription, Preprocessing, SessionInfo
from cbn_deploy.training.evaluation import evaluate_predictions
from cbn_deploy.training.metrics import calibrate, evaluate_prior_shift
from cbn_deploy.training.model_evaluation import ModelEvaluation

INFO = SessionInfo(runtime="onnxruntime", version="1.0", kernel_path="fused", threads=1, device="cpu", file="[m].onnx")


def printed(classes, layers=()):
    rng = np.random.default_rng(0)
    counts = tuple(2000 - k for k in range(classes))
    description = ModelDescription(
        class_names=tuple(f"[red]{k}[/]" for k in range(classes)),
        class_counts=counts,
        preprocessing=Preprocessing(height=8, width=8),
        architecture="resnet20",
        components=2,
        training_prior=(1.0,) * classes,
    )
    labels = rng.integers(0, classes, size=300)
    logits = rng.normal(size=(300, classes)) + np.eye(classes)[labels]
    prior = np.ones(classes) / classes
    result = ModelEvaluation(
        images=300,
        temperature=1.5,
        scores=evaluate_predictions(logits, labels, counts),
        mixture={layer: MixtureHealth(occupancy=(0.75, 0.25), pixel_entropy=0.5) for layer in layers},
        calibration=calibrate(logits, labels, prior),
        prior_shift=evaluate_prior_shift(logits, labels, counts, prior),
    )
    console = Console(file=io.StringIO(), width=100)
    for part in tables(result, description, INFO):
        console.print(part, highlight=False)
    return console.file.getvalue(), result


def test_every_figure_is_printed():
    text, result = printed(3, ("stem",))
    for figure in (
        f"{result.scores.top1:.1%}",
        f"{result.scores.balanced_accuracy:.1%}",
        f"{result.scores.nll:.4f}",
        f"{result.calibration.temperature:.4f}",
        f"{result.prior_shift[0].corrected_top1:.1%}",
        "the file's temperature, 1.5",
        "75%  25%",
        "[red]2[/]",
        "[m].onnx",
    ):
        assert figure in text
    assert "more, all in --json" not in text


def test_of_many_classes_and_layers_the_ends_are_shown():
    text, _ = printed(1000, [f"layer{number}" for number in range(53)])
    assert "... 900 more, all in --json" in text
    assert "... 45 more, all in --json" in text
    assert all(f"[red]{k}[/] " in text for k in (0, 49, 950, 999))
    assert "[red]50[/] " not in text
    assert "layer52" in text
    assert "0 of 106" in text
