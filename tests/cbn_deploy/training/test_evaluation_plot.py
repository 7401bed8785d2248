"""The picture of cbn-eval: what it says is what was measured."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from cbn_deploy.runtime import ModelDescription, Preprocessing
from cbn_deploy.training.evaluation import evaluate_predictions
from cbn_deploy.training.evaluation_plot import draw_evaluation
from cbn_deploy.training.metrics import calibrate
from cbn_deploy.training.model_evaluation import ModelEvaluation


def measured(classes, images, *, with_calibration=False):
    rng = np.random.default_rng(0)
    counts = tuple(int(500 * 0.01 ** (k / max(classes - 1, 1))) + 1 for k in range(classes))
    description = ModelDescription(
        class_names=tuple(f"class <{k}>" for k in range(classes)),
        class_counts=counts,
        preprocessing=Preprocessing(height=8, width=8),
        architecture="resnet20",
        components=4,
        training_prior=(1 / classes,) * classes,
    )
    labels = rng.integers(0, classes, size=images)
    logits = rng.normal(size=(images, classes)) + 2 * np.eye(classes)[labels]
    calibration = calibrate(logits, labels, np.full(classes, 1 / classes)) if with_calibration else None
    result = ModelEvaluation(
        images=images,
        temperature=None,
        scores=evaluate_predictions(logits, labels, counts),
        mixture={},
        calibration=calibration,
        prior_shift=(),
    )
    return result, description


@pytest.mark.parametrize(("classes", "images"), [(1, 3), (10, 300), (10, 4), (120, 700)])
def test_any_number_of_classes_some_without_images(classes, images):
    png = draw_evaluation(*measured(classes, images), "model.onnx")
    with Image.open(io.BytesIO(png)) as picture:
        assert picture.format == "PNG"
        assert picture.width > 1000


def test_the_figures_are_in_the_picture():
    result, description = measured(6, 400, with_calibration=True)
    svg = draw_evaluation(result, description, "model.onnx, 400 images", "svg").decode()
    # Text is drawn as outlines, with the words in comments.
    assert "<!-- model.onnx, 400 images -->" in svg
    assert f"<!-- balanced accuracy {result.scores.balanced_accuracy:.1%} -->" in svg
    assert f"<!-- T = {result.calibration.temperature:.2f}, ECE {result.calibration.after.error:.1%} -->" in svg
    for recall in result.scores.per_class:
        assert f"<!-- {recall:.0%} -->" in svg


def test_a_class_without_images_says_so():
    svg = draw_evaluation(*measured(10, 4), "few", "svg").decode()
    assert "no test" in svg
