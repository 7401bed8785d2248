from __future__ import annotations

import json
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from cbn_deploy.checkpoint import load_checkpoint
from cbn_deploy.cli import evaluate as command
from cbn_deploy.runtime.factory import RUNTIMES
from cbn_deploy.runtime.onnx_file import read_onnx_file
from export import ExportOptions, export_checkpoint
from tests.onnx_models import SIZE, colour_model, write_colour_model
from tests.reference.tolerances import tolerance


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


def test_images_that_are_probably_those_of_the_training_get_a_warning(cbn_eval, finished_run, photos, tmp_path):
    code, out, err = cbn_eval(finished_run / "model.pt", "--data", photos / "train")
    assert code == 0
    assert "top-1" in out
    assert err.startswith("Warning: ")
    assert "these figures are too good" in err
    assert err.count("\n") == 1


def test_the_recipe_of_the_training_knows_its_seed(cbn_eval, finished_run, photos, tmp_path):
    model, recipe = finished_run / "model.pt", ("--recipe", "image-folder", "--set", "views.cutout=4")
    assert cbn_eval(model, "--data", photos, *recipe)[0] == 0
    code, _, err = cbn_eval(model, "--data", photos, *recipe, "--set", "data.seed=1")
    assert code == 2
    assert "trained with data.seed=0" in err


def test_the_help_names_every_file_and_runtime(cbn_eval):
    text = cbn_eval("--help")[1]
    for word in (".pt", ".onnx", ".engine", *RUNTIMES):
        assert word in text


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


@pytest.fixture(scope="module")
def exported(finished_run, tmp_path_factory):
    """The finished run's model with posteriors."""
    output = tmp_path_factory.mktemp("exported") / "model.onnx"
    export_checkpoint(finished_run / "model.pt", output, ExportOptions(inputs=32, with_posterior=True))
    return output


@pytest.fixture
def colours(tmp_path):
    """A model that knows red, green and blue, and plain images of them: it is always right."""
    for name, colour in (("red", (200, 30, 40)), ("green", (20, 190, 50)), ("blue", (5, 60, 220))):
        (tmp_path / "colours" / name).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (SIZE, SIZE), colour).save(tmp_path / "colours" / name / f"{number}.png")
    return write_colour_model(tmp_path / "colours.onnx"), tmp_path / "colours"


def test_an_exported_file_scores_as_its_checkpoint(cbn_eval, finished_run, exported, photos, tmp_path):
    for model in (finished_run / "model.pt", exported):
        arguments = (model, "--data", photos, "--threads", 1, "--calibrate", "--prior-shift")
        assert cbn_eval(*arguments, "--json", tmp_path / f"{model.suffix}.json")[0] == 0
    assert read_onnx_file(exported).description.data_seed == 0
    ours, theirs = (json.loads((tmp_path / f"{suffix}.json").read_text()) for suffix in (".onnx", ".pt"))
    assert (ours.pop("runtime"), theirs.pop("runtime")) == ("onnxruntime", "torch")
    for key in ("kernel_path", "runtime_version"):
        del ours[key], theirs[key]
    for key in (
        "top1",
        "many",
        "medium",
        "few",
        "per_class",
        "per_class_interval",
        "balanced_accuracy",
        "class_counts",
    ):
        assert ours.pop(key) == theirs.pop(key)
    assert ours["mixture"].keys() == theirs["mixture"].keys()
    assert len(ours["mixture"]) == 19
    agree(ours.pop("mixture"), theirs.pop("mixture"), tolerance("exported posterior"))
    agree(ours, theirs, tolerance("exported figures"))
    assert ours["calibration"]["temperature"] > 0
    assert len(ours["prior_shift"]) == 11


def agree(ours, theirs, limit):
    """The same structure, numbers within ``limit``."""
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for key in ours:
            agree(ours[key], theirs[key], limit)
    elif isinstance(ours, list):
        for one, other in zip(ours, theirs, strict=True):
            agree(one, other, limit)
    elif isinstance(ours, float):
        np.testing.assert_allclose(ours, theirs, **limit)
    else:
        assert ours == theirs


def test_the_mixture_is_what_training_reported(cbn_eval, finished_run, photos, tmp_path):
    assert cbn_eval(finished_run / "model.pt", "--data", photos, "--json", tmp_path / "scores.json")[0] == 0
    mixture = json.loads((tmp_path / "scores.json").read_text())["mixture"]
    agree(mixture, json.loads((finished_run / "report.json").read_text())["mixture"], tolerance("exported posterior"))


def test_a_file_without_posteriors_says_nothing_of_the_mixture(cbn_eval, colours, tmp_path):
    model, data = colours
    code, out, err = cbn_eval(model, "--data", data, "--json", tmp_path / "scores.json")
    assert (code, err) == (0, "")
    assert "mixture" not in out
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert (scores["mixture"], scores["calibration"], scores["prior_shift"]) == (None, None, None)
    assert scores["top1"] == 1.0


@pytest.mark.parametrize("suffix", [".onnx", ".pt"])
def test_a_written_temperature_is_applied_from_then_on(cbn_eval, finished_run, exported, photos, tmp_path, suffix):
    model = tmp_path / f"model{suffix}"
    model.write_bytes((exported if suffix == ".onnx" else finished_run / "model.pt").read_bytes())

    def scores(*arguments):
        code, out, err = cbn_eval(model, "--data", photos, *arguments, "--json", tmp_path / "scores.json")
        assert (code, err) == (0, "")
        return json.loads((tmp_path / "scores.json").read_text()), out

    before, out = scores("--write-temperature")
    temperature = before["calibration"]["temperature"]
    assert f"now carries temperature {temperature:.4f}" in out
    assert before["temperature"] is None
    after, out = scores("--calibrate")
    assert after["temperature"] == temperature
    assert f"{temperature:.4g}" in out
    agree(after["calibration"], before["calibration"], tolerance("exported figures"))  # not on top of the first
    assert after["top1"] == before["top1"]
    assert after["nll"] != pytest.approx(before["nll"], abs=1e-6)


def test_the_temperature_of_a_checkpoint_reaches_what_is_exported(cbn_eval, finished_run, photos, tmp_path):
    model = tmp_path / "model.pt"
    model.write_bytes((finished_run / "model.pt").read_bytes())
    assert cbn_eval(model, "--data", photos, "--write-temperature")[0] == 0
    export_checkpoint(model, tmp_path / "model.onnx", ExportOptions(inputs=32))
    temperature = load_checkpoint(model).description.temperature
    assert temperature is not None
    assert read_onnx_file(tmp_path / "model.onnx").description.temperature == temperature


def test_no_temperature_fits_a_model_that_is_always_right(cbn_eval, colours, tmp_path):
    model, data = colours
    code, out, err = cbn_eval(model, "--data", data, "--calibrate", "--json", tmp_path / "scores.json")
    assert (code, err) == (0, "")
    assert "No temperature fits" in out
    (tmp_path / "scores.json").unlink()
    content = model.read_bytes()
    code, out, err = cbn_eval(model, "--data", data, "--write-temperature", "--json", tmp_path / "scores.json")
    assert code == 2
    assert "No temperature fits" in err
    assert "top-1 100.0%" in out  # what was measured is not lost
    assert json.loads((tmp_path / "scores.json").read_text())["top1"] == 1.0
    assert model.read_bytes() == content


def test_images_of_one_class_alone(cbn_eval, colours, tmp_path):
    model, data = colours
    for name in ("red", "green"):
        shutil.rmtree(data / name)
    code, _, err = cbn_eval(
        model, "--data", data, "--calibrate", "--prior-shift", "--plot", tmp_path / "a.png", "--json", tmp_path / "a"
    )
    assert (code, err) == (0, "")
    scores = json.loads((tmp_path / "a").read_text())
    assert scores["per_class"] == [None, None, 1.0]
    assert scores["per_class_interval"][0] is None
    assert (scores["many"], scores["few"], scores["balanced_accuracy"]) == (None, 1.0, 1.0)
    assert [score["top1"] for score in scores["prior_shift"]] == [1.0] * 11


def test_answers_that_are_not_numbers(cbn_eval, colours):
    _, data = colours
    broken = write_colour_model(data / "broken.onnx", colour_model(broken_weight=float("nan")))
    code, out, err = cbn_eval(broken, "--data", data)
    assert (code, out) == (2, "")
    assert "broken.onnx answers 9 of 9 images with NaN or infinity" in err


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_the_picture(cbn_eval, exported, photos, tmp_path, suffix):
    arguments = (exported, "--data", photos, "--calibrate", "--plot")
    for name in (f"one.{suffix}", f"two.{suffix}"):
        assert cbn_eval(*arguments, tmp_path / name)[0] == 0
    content = (tmp_path / f"one.{suffix}").read_bytes()
    assert content == (tmp_path / f"two.{suffix}").read_bytes()
    assert content.startswith({"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[suffix])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{model}", "--data", "/no/folder"], "does not exist"),
        (["{model}", "--data", "digits"], "are not those of digits-lt"),
        (["{model}", "--data", "{photos}", "--runtime", "abacus"], "no runtime 'abacus'"),
        (["{model}", "--data", "{photos}", "--recipe", "image"], "no recipe 'image'"),
        (["{model}", "--data", "{photos}", "--set", "data.seed=1"], "--recipe"),
        (["{model}", "--data", "{photos}", "--recipe", "digits-lt"], "reads no folder; give --data digits"),
        (["{model}", "--data", "/no/folder", "--recipe", "digits-lt"], "reads no folder; give --data digits"),
        (["{model}", "--data", "digits", "--recipe", "digits-lt"], "are not those of digits-lt"),
        (["{photos}/model.pt", "--data", "digits"], "does not exist"),
        (["{photos}/model.onnx", "--data", "digits"], "does not exist"),
        (["{photos}/train/zero/0.png", "--data", "digits"], "neither"),
        (["{model}", "--data", "{photos}", "--json", "/proc/no/scores.json"], "Cannot write to /proc/no"),
        (["{model}", "--data", "{photos}", "--plot", "/proc/no/scores.png"], "Cannot write to /proc/no"),
        (["{model}", "--data", "/no/folder", "--plot", "scores.gif"], "neither a .png"),
    ],
)
def test_mistakes_get_one_sentence_and_exit_code_2(cbn_eval, finished_run, photos, arguments, message):
    code, _, err = cbn_eval(*(word.format(model=finished_run / "model.pt", photos=photos) for word in arguments))
    assert code == 2
    assert message in err
    assert err.startswith("Error: ")
    assert err.count("\n") == 1
