from __future__ import annotations

import json
import math

import numpy as np
import pytest

from cbn_deploy.errors import DataError
from cbn_deploy.training import RECIPES, apply_settings
from cbn_deploy.training.evaluation import evaluate_predictions
from cbn_deploy.training.finished_runs import find_runs, paired_gain, paired_recall_gains, read_run, rows_of

COUNTS = (300, 30, 3)
DUAL = "loss.paths=compound+split"


def write_report(folder, *settings, right=(4, 4, 4), names=("a", "b", "c"), recipe="image-folder"):
    """A report as cbn-train writes it, of a run that gets ``right`` of 4 test images of each class right."""
    labels = np.repeat(np.arange(3), 4)
    hit = np.concatenate([np.arange(4) < number for number in right])
    logits = 3.0 * np.eye(3)[np.where(hit, labels, (labels + 1) % 3)]
    report = {
        "recipe": apply_settings(RECIPES[recipe], settings).to_dict(),
        "evaluation": evaluate_predictions(logits, labels, COUNTS).to_dict(),
        "classes": [{"name": name, "training_images": n} for name, n in zip(names, COUNTS, strict=True)],
        "history": [{"epoch": epoch, "top1": top1} for epoch, top1 in ((1, None), (2, 0.25), (4, sum(right) / 12))],
    }
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps(report))
    return folder


def rows_in(*folders):
    finished, _ = find_runs(folders)
    return rows_of([read_run(folder) for folder in finished])


def test_seeds_are_one_row_and_settings_tell_rows_apart(tmp_path):
    for seed, (compound, plain) in enumerate([((4, 4, 2), (4, 3, 1)), ((4, 3, 1), (4, 4, 0)), ((4, 4, 4), (4, 4, 0))]):
        write_report(tmp_path / f"cbn-{seed}", f"seed={seed}", DUAL, "data.cache_mb=1", right=compound)
        write_report(tmp_path / f"bn-{seed}", f"seed={seed}", "model=resnet32-bn", right=plain)
    plain, compound = rows_in(tmp_path)
    assert plain.label == "model=resnet32-bn, loss.paths=compound"  # batch norm first
    assert compound.label == "model=resnet32, loss.paths=compound+split"
    few = compound.spread("few")
    assert few.mean == pytest.approx(np.mean([0.5, 0.25, 1.0]))
    assert few.deviation == pytest.approx(np.std([0.5, 0.25, 1.0], ddof=1))
    spread, above, pairs = paired_gain(compound, plain, "balanced_accuracy")
    gains = [2 / 12, 0, 4 / 12]
    assert (above, pairs) == (2, 3)
    assert spread.mean == pytest.approx(np.mean(gains))
    assert spread.deviation == pytest.approx(np.std(gains, ddof=1))


def test_only_shared_seeds_are_paired(tmp_path):
    write_report(tmp_path / "bn", "model=resnet32-bn", "seed=1", right=(4, 4, 0))
    write_report(tmp_path / "x", "seed=1", right=(4, 4, 1))
    write_report(tmp_path / "y", "seed=2", right=(0, 0, 0))
    plain, compound = rows_in(tmp_path)
    spread, above, pairs = paired_gain(compound, plain, "balanced_accuracy")
    assert (spread.mean, spread.deviation) == (pytest.approx(1 / 12), None)
    assert (above, pairs) == (1, 1)
    write_report(tmp_path / "z", "seed=1", "epochs=7")
    assert [row.label for row in rows_in(tmp_path)][1:] == [
        "model=resnet32, epochs=200",
        "model=resnet32, epochs=7",
    ]
    assert paired_gain(rows_in(tmp_path / "y")[0], plain, "top1") is None


def test_recalls_are_paired_class_by_class(tmp_path):
    write_report(tmp_path / "bn", "model=resnet32-bn", "seed=1", right=(4, 3, 0))
    write_report(tmp_path / "x", "seed=1", right=(3, 3, 2))
    write_report(tmp_path / "y", "seed=2", right=(0, 0, 0))
    plain, compound = rows_in(tmp_path)
    np.testing.assert_array_equal(paired_recall_gains(compound, plain), [[-0.25, 0, 0.5]])
    assert plain.runs[0].top1 == ((2, 0.25), (4, 7 / 12))
    report = json.loads((tmp_path / "y" / "report.json").read_text())
    report["evaluation"]["per_class"][1] = None
    (tmp_path / "y" / "report.json").write_text(json.dumps(report))
    alone = rows_in(tmp_path / "y")[0]
    np.testing.assert_array_equal(paired_recall_gains(alone, alone), [[0, np.nan, 0]])
    assert paired_recall_gains(alone, plain).shape == (0, 3)


def test_batch_norm_has_one_path_whatever_the_recipe_says(tmp_path):
    dual = write_report(tmp_path / "0", "model=resnet32-bn", "seed=0") / "report.json"
    report = json.loads(dual.read_text())
    report["recipe"]["loss"]["paths"] = "compound+split"
    dual.write_text(json.dumps(report))
    write_report(tmp_path / "1", "model=resnet32-bn", "seed=1")
    write_report(tmp_path / "2", "model=resnet32-bn", "loss.paths=two_views")
    one_path, two_views = rows_in(tmp_path)
    assert (one_path.label, len(one_path.runs)) == ("loss.paths=compound", 2)
    assert two_views.label == "loss.paths=two_views"


def test_the_usual_imbalance_is_the_same_typed_or_not(tmp_path):
    write_report(tmp_path / "0", recipe="cifar10-lt")
    write_report(tmp_path / "1", "rho=100", "seed=1", recipe="cifar10-lt")
    assert [len(row.runs) for row in rows_in(tmp_path)] == [2]
    write_report(tmp_path / "2", "rho=50", recipe="cifar10-lt")
    assert [row.label for row in rows_in(tmp_path)] == ["rho=100.0", "rho=50.0"]


@pytest.mark.parametrize("setting", ["seed=1", "data.cache_mb=1", "schedule.evaluate_every=9"])
def test_what_changes_no_result_makes_no_other_experiment(setting):
    recipe = RECIPES["image-folder"]
    assert apply_settings(recipe, [setting]).experiment() == recipe.experiment()


def test_unfinished_runs_are_told(tmp_path):
    write_report(tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "last.pt").write_bytes(b"")
    assert find_runs([tmp_path]) == ([tmp_path / "a"], [tmp_path / "b"])
    assert find_runs([tmp_path / "a", tmp_path]) == ([tmp_path / "a"], [tmp_path / "b"])


def test_what_cannot_be_compared_is_refused(tmp_path):
    first, empty = write_report(tmp_path / "first"), tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match="are the same run"):
        rows_in(first, write_report(tmp_path / "again"))
    with pytest.raises(DataError, match="not on the same data"):
        rows_in(first, write_report(tmp_path / "other", "seed=1", names=("a", "b", "d")))
    with pytest.raises(DataError, match="no finished run"):
        find_runs([empty])
    with pytest.raises(DataError, match="is not a folder"):
        find_runs([tmp_path / "nowhere"])


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"recipe": {}, "evaluation": {}}', '{"recipe": 3}', "\x00\xff"])
def test_a_damaged_report_is_one_sentence(tmp_path, content):
    folder = write_report(tmp_path / "a")
    (folder / "report.json").write_text(content)
    with pytest.raises(DataError, match="is no report of this version"):
        read_run(folder)


@pytest.mark.parametrize("recalls", [[0.5], [0.5, 0.5, "x"], 1])
def test_recalls_of_other_classes_are_a_damaged_report(tmp_path, recalls):
    folder = write_report(tmp_path / "a")
    report = json.loads((folder / "report.json").read_text())
    report["evaluation"]["per_class"] = recalls
    (folder / "report.json").write_text(json.dumps(report))
    with pytest.raises(DataError, match="is no report of this version"):
        read_run(folder)


NO_CLASSES = {"classes": [], "evaluation": {"per_class": [], "per_class_images": []}}


@pytest.mark.parametrize(
    "odd",
    [
        {"recipe": {"views": None}},
        {"recipe": {"norm": {"components": 4.5}}},
        {"history": [{"epoch": math.inf, "top1": 0.5}]},
        {"history": [{"epoch": 1, "top1": math.nan}]},
        {"evaluation": {"top1": math.nan}},
        {"evaluation": {"few": -math.inf}},
        {"evaluation": {"per_class": [0.5, math.nan, 0.5]}},
        {"evaluation": {"per_class_images": [4, math.inf, 4]}},
        NO_CLASSES,
    ],
    ids=str,
)
def test_an_odd_report_is_one_sentence_that_names_it(tmp_path, odd):
    file = write_report(tmp_path / "a") / "report.json"
    report = json.loads(file.read_text())
    for part, changes in odd.items():
        report[part] = report[part] | changes if isinstance(changes, dict) else changes
    file.write_text(json.dumps(report))
    with pytest.raises(DataError, match="is no report of this version") as caught:
        read_run(tmp_path / "a")
    assert str(file) in str(caught.value)
