from __future__ import annotations

import json
import sys

import pytest

from cbn_deploy.cli import evaluate as command
from export import ExportOptions, export_checkpoint


@pytest.fixture
def cbn_eval(monkeypatch, capsys):
    """Run the command in this process: (exit code, stdout, stderr)."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["cbn-eval", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            command.main()
        return caught.value.code or 0, *capsys.readouterr()

    return run


def test_the_checkpoint_scores_as_its_own_report_says(cbn_eval, finished_run, photos, tmp_path):
    code, out, err = cbn_eval(finished_run / "model.pt", "--data", photos, "--json", tmp_path / "scores.json")
    assert (code, err) == (0, "")
    scores = json.loads((tmp_path / "scores.json").read_text())
    report = json.loads((finished_run / "report.json").read_text())["evaluation"]
    assert list(scores)[:6] == ["top1", "many", "medium", "few", "per_class", "ece"]
    assert scores["top1"] == report["top1"]
    assert scores["per_class"] == report["per_class"]
    assert scores["many"] is None
    assert scores["ece"] == pytest.approx(report["ece"], abs=1e-4)  # frozen layers round differently
    assert f"{scores['top1']:.1%}" in out
    assert "eight" in out


def test_the_batch_size_does_not_matter(cbn_eval, finished_run, photos, tmp_path):
    for size in (1, 7):
        assert (
            cbn_eval(finished_run / "model.pt", "--data", photos, "--batch-size", size, "--json", tmp_path / f"{size}")[
                0
            ]
            == 0
        )
    one, seven = (json.loads((tmp_path / name).read_text()) for name in ("1", "7"))
    for key in ("top1", "per_class", "per_class_interval", "images"):
        assert one[key] == seven[key]
    for key in ("ece", "nll", "classwise_ece"):
        assert one[key] == pytest.approx(seven[key], abs=1e-4)


def test_an_exported_file_scores_as_its_checkpoint(cbn_eval, finished_run, photos, tmp_path):
    export_checkpoint(finished_run / "model.pt", tmp_path / "model.onnx", ExportOptions(inputs=32))
    for model in (finished_run / "model.pt", tmp_path / "model.onnx"):
        arguments = (model, "--data", photos, "--threads", 1, "--json", tmp_path / f"{model.suffix}.json")
        assert cbn_eval(*arguments)[0] == 0
    ours, theirs = (json.loads((tmp_path / f"{suffix}.json").read_text()) for suffix in (".onnx", ".pt"))
    assert (ours["runtime"], theirs["runtime"]) == ("onnxruntime", "torch")
    assert ours["per_class"] == theirs["per_class"]
    assert ours["ece"] == pytest.approx(theirs["ece"], abs=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{model}", "--data", "/no/folder"], "does not exist"),
        (["{model}", "--data", "digits"], "are not those of digits-lt"),
        (["{model}", "--data", "{photos}", "--runtime", "abacus"], "no runtime 'abacus'"),
        (["{model}", "--data", "{photos}", "--recipe", "image"], "no recipe 'image'"),
        (["{model}", "--data", "{photos}", "--set", "data.seed=1"], "--recipe"),
        (["{photos}/model.pt", "--data", "digits"], "does not exist"),
        (["{photos}/model.onnx", "--data", "digits"], "does not exist"),
        (["{photos}/train/zero/0.png", "--data", "digits"], "neither"),
        (["{model}", "--data", "{photos}", "--json", "/proc/no/scores.json"], "Cannot write"),
    ],
)
def test_mistakes_get_one_sentence_and_exit_code_2(cbn_eval, finished_run, photos, arguments, message):
    code, _, err = cbn_eval(*(word.format(model=finished_run / "model.pt", photos=photos) for word in arguments))
    assert code == 2
    assert message in err
    assert err.startswith("Error: ")
    assert err.count("\n") == 1
