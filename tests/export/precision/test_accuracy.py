"""The accuracy gate's figures against an independent computation, and where it draws the line."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, recall_score

from cbn_deploy.errors import ParityError
from export.precision.accuracy import AccuracyReport, compare, require_accuracy, require_finite

# Two many-, two medium- and three few-shot classes; the last one has no test image.
COUNTS = (500, 101, 100, 20, 19, 3, 1)
GROUPS = {"many": [0, 1], "medium": [2, 3], "few": [4, 5]}


def predictions(seed: int, labels: np.ndarray, skill: float) -> np.ndarray:
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(len(labels), len(COUNTS)))
    logits[np.arange(len(labels)), labels] += skill
    return logits.astype(np.float32)


@pytest.fixture
def labels() -> np.ndarray:
    return np.random.default_rng(0).choice(6, size=300, p=[0.4, 0.25, 0.15, 0.1, 0.06, 0.04])


def report_of(float32: np.ndarray, lowered: np.ndarray, labels: np.ndarray, max_drop: float = 0.5) -> AccuracyReport:
    return compare(float32, lowered, labels, COUNTS, test_set="photos", max_drop=max_drop)


def test_every_figure_is_what_scikit_learn_says(labels: np.ndarray) -> None:
    float32, lowered = predictions(1, labels, 2.0), predictions(2, labels, 1.5)
    report = report_of(float32, lowered, labels)
    before, after = float32.argmax(1), lowered.argmax(1)
    assert report.float32_top1 == pytest.approx(accuracy_score(labels, before))
    assert report.lowered_top1 == pytest.approx(accuracy_score(labels, after))
    overall, *groups = report.rows
    assert overall.group == "all classes"
    assert overall.images == report.images == 300
    assert overall.float32 == pytest.approx(recall_score(labels, before, labels=range(6), average="macro"))
    assert overall.lowered == pytest.approx(recall_score(labels, after, labels=range(6), average="macro"))
    assert overall.drop == report.drop == pytest.approx(100 * (overall.float32 - overall.lowered))
    assert overall.agreement == pytest.approx(accuracy_score(before, after))
    assert [row.group for row in groups] == list(GROUPS)
    for row, classes in zip(groups, GROUPS.values(), strict=True):
        inside = np.isin(labels, classes)
        for found, predicted in ((row.float32, before), (row.lowered, after)):
            assert found == pytest.approx(recall_score(labels, predicted, labels=classes, average="macro"))
        assert row.images == inside.sum()
        assert row.agreement == pytest.approx(accuracy_score(before[inside], after[inside]))


def test_a_group_without_test_images_has_no_row() -> None:
    labels = np.array([0, 1, 2, 2])
    logits = predictions(0, labels, 9.0)
    assert [row.group for row in report_of(logits, logits, labels).rows] == ["all classes", "many", "medium"]


@pytest.fixture
def one_in_a_hundred() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Perfect logits, and others that miss 1 of 100 images in 1 of 2 classes: 0.5 points of balanced top-1."""
    labels = np.repeat([0, 4], 100)
    perfect = np.eye(len(COUNTS), dtype=np.float32)[labels]
    worse = perfect.copy()
    worse[150] = np.eye(len(COUNTS))[0]
    return perfect, worse, labels


def test_exactly_the_allowed_drop_passes(one_in_a_hundred: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    perfect, worse, labels = one_in_a_hundred
    report = report_of(perfect, worse, labels)
    assert report.drop == pytest.approx(0.5)
    require_accuracy(report, "int8")
    require_accuracy(report_of(worse, perfect, labels, max_drop=0.0), "int8")  # better is always welcome


def test_more_than_allowed_is_refused(one_in_a_hundred: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    perfect, worse, labels = one_in_a_hundred
    report = report_of(perfect, worse, labels, max_drop=0.49)
    with pytest.raises(ParityError, match=r"loses 0\.50 points .*1\.00 on the few-shot .*0\.49 is allowed.*--max-drop"):
        require_accuracy(report, "int8")
    require_accuracy(dataclasses.replace(report, max_drop=0.6), "int8")


def test_logits_that_are_no_numbers_are_refused(labels: np.ndarray) -> None:
    good = predictions(0, labels, 2.0)
    bad = good.copy()
    bad[3, 1], bad[7, 0], bad[7, 1] = np.nan, np.inf, np.inf
    require_finite(good, good, "fp16")
    with pytest.raises(ParityError, match="not finite on 2 of 300 test images"):
        require_finite(good, bad, "fp16")
    with pytest.raises(ParityError, match="checkpoint's own logits"):
        require_finite(bad, good, "fp16")
