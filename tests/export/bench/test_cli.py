"""cbn-bench as a person meets it: bad input is one sentence and exit code 2, before anything is measured or written."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import torch

from export.bench import main
from export.bench.candidates import RUNTIMES


@pytest.fixture
def cbn_bench(monkeypatch, capsys):
    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["cbn-bench", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            main()
        captured = capsys.readouterr()
        return exit_.value.code or 0, captured.out, captured.err

    return run


def test_a_run_prints_tables_and_writes_both_files(cbn_bench, checkpoint_path, tmp_path):
    code, out, err = cbn_bench(
        checkpoint_path, "--runtimes", "tensorrt, eager,eager", "--batch-sizes", "2,1,2", "--threads", 1,
        "--rounds", 2, "--json", tmp_path / "new" / "b.json", "--plot", tmp_path / "b.PNG",
    )  # fmt: skip
    assert (code, err.strip()) == (0, "")
    for name in ("cbn/eager", "bn/eager", "cbn/tensorrt", "Batch size 1", "Batch size 2"):
        assert name in out
    report = json.loads((tmp_path / "new" / "b.json").read_text())
    assert report["parameters"]["runtimes"] == ["eager", "tensorrt"]
    assert report["parameters"]["batch_sizes"] == [2, 1]
    assert (tmp_path / "b.PNG").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.PNG", "new"]


def test_list_needs_no_model(cbn_bench):
    code, out, _ = cbn_bench("--list")
    assert code == 0
    assert all(name in out for name in RUNTIMES)


def test_help_has_examples(cbn_bench):
    code, out, _ = cbn_bench("--help")
    assert code == 0
    assert "cbn-bench model.pt --rounds 100 --json bench.json --plot bench.png" in out


BAD_OPTIONS = {
    "misspelt runtime": (["--runtimes", "onnxruntme"], "did you mean onnxruntime?"),
    "foreign runtime": (["--runtimes", "eager,xyz"], "choose from eager-paper, eager"),
    "no runtime": (["--runtimes", " , "], "--runtimes is empty"),
    "batch size 0": (["--batch-sizes", "1,0"], "--batch-sizes must be between 1 and 4096, got 0"),
    "negative batch size": (["--batch-sizes=-4"], "got -4"),
    "huge batch size": (["--batch-sizes", "1000000"], "got 1000000"),
    "batch size in words": (["--batch-sizes", "1,two"], "not 'two'"),
    "fractional batch size": (["--batch-sizes", "1.5"], "not '1.5'"),
    "empty batch sizes": (["--batch-sizes", ""], "--batch-sizes is empty"),
    "no rounds": (["--rounds", "0"], "--rounds must be between 1 and 10000"),
    "no threads": (["--threads", "0"], "--threads must be between 1 and"),
    "too many threads": (["--threads", "100000"], "got 100000"),
    "unknown picture": (["--plot", "plot.gif"], "name the picture by its format"),
    "one file for two": (["--json", "a.png", "--plot", "./a.png"], "choose two names"),
    "folder as file": (["--json", "."], "is a folder"),
    "file as folder": (["--json", "file/b.json"], "Cannot write to file"),
}


@pytest.mark.parametrize(("options", "sentence"), BAD_OPTIONS.values(), ids=BAD_OPTIONS.keys())
def test_bad_options_are_one_sentence(cbn_bench, checkpoint_path, tmp_path, monkeypatch, options, sentence):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.chdir(tmp_path)
    code, out, err = cbn_bench(checkpoint_path, *options)
    assert code == 2
    assert sentence in err
    assert err.startswith("Error: ")
    assert err.count("\n") == 1
    assert out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_checkpoint_is_never_overwritten(cbn_bench, checkpoint_path):
    before = checkpoint_path.read_bytes()
    code, _, err = cbn_bench(checkpoint_path, "--json", checkpoint_path)
    assert (code, checkpoint_path.read_bytes()) == (2, before)
    assert "is the checkpoint itself" in err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_folder_is_found_before_measuring(cbn_bench, checkpoint_path, tmp_path):
    tmp_path.chmod(0o500)
    code, _, err = cbn_bench(checkpoint_path, "--plot", tmp_path / "b.png")
    tmp_path.chmod(0o700)
    assert code == 2
    assert "Cannot write" in err


def not_a_checkpoint(kind: str, folder: Path) -> Path:
    path = folder / "model.pt"
    if kind == "text":
        path.write_text("hello")
    elif kind == "empty":
        path.touch()
    elif kind == "foreign":
        torch.save({"weights": torch.zeros(2)}, path)
    elif kind == "code":
        torch.save({"format": Path()}, path)
    elif kind == "folder":
        path.mkdir()
    return path


@pytest.mark.parametrize("kind", ["text", "empty", "foreign", "code", "folder", "missing"])
def test_a_file_that_is_no_checkpoint_is_one_sentence(cbn_bench, tmp_path, kind):
    code, out, err = cbn_bench(not_a_checkpoint(kind, tmp_path), "--json", tmp_path / "out" / "b.json")
    assert code == 2
    assert err.startswith("Error: ")
    assert err.count("\n") == 1
    assert "model.pt" in err
    assert out == ""
    assert not (tmp_path / "out" / "b.json").exists()


def test_no_model_is_one_sentence(cbn_bench):
    code, _, err = cbn_bench()
    assert code == 2
    assert "Say which model to measure" in err
