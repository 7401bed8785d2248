"""cbn-export as a person meets it."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from cbn_deploy.native_library import native_library
from export.render import parity_table, summary_table
from tests.export.command import cbn_export


def test_export_and_what_it_prints(
    checkpoint_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "deploy" / "model.onnx"
    assert cbn_export(monkeypatch, checkpoint_path, "-o", output, "--with-posterior") == 0
    printed = capsys.readouterr().out
    assert "CompoundBatchNormalizationAddRelu" in printed
    assert "256 inputs (64 real images)" in printed
    assert "top-1 agreement 100.00%" in printed
    assert "layer3.2.bn2" in printed
    assert len(onnx.load(output).graph.output) == 20
    assert [path.name for path in output.parent.iterdir()] == ["model.onnx"]


def test_help_has_examples(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert cbn_export(monkeypatch, "--help") == 0
    printed = capsys.readouterr().out
    assert "Examples" in printed
    for option in ("--output", "--inline", "--with-posterior", "--precision", "--target", "--data"):
        assert option in printed


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["missing.pt"], "does not exist"),
        (["{tmp}"], "is a folder"),
        (["{tmp}/text.pt"], "text.pt"),
        (["{checkpoint}", "-o", "{tmp}"], "is a folder"),
        (["{checkpoint}", "-o", "{tmp}/text.pt/model.onnx"], "Cannot write"),
        (["{checkpoint}", "-o", "{checkpoint}"], "checkpoint itself"),
        (["{checkpoint}", "-o", "{tmp}/m.onnx", "--data", "{tmp}/none"], "not a folder"),
        (["{checkpoint}", "-o", "{tmp}/m.onnx", "--data", "{tmp}"], "holds no"),
        (["{checkpoint}", "-o", "{tmp}/m.onnx", "--precision", "int4"], "int4"),
        (["{checkpoint}", "-o", "{tmp}/m.onnx", "--target", "coreml"], "coreml"),
        (["{checkpoint}", "--unknown"], "--unknown"),
        ([], "MODEL.pt"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    arguments: list[str],
    sentence: str,
    checkpoint_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "text.pt").write_text("not a checkpoint")
    filled = [argument.format(tmp=tmp_path, checkpoint=checkpoint_path) for argument in arguments]
    assert cbn_export(monkeypatch, *filled) == 2
    captured = capsys.readouterr()
    assert sentence in captured.err
    assert "Traceback" not in captured.err
    assert [path.name for path in tmp_path.iterdir()] == ["text.pt"]


def test_tables_have_a_row_for_everything(exported) -> None:
    logits = 6 if native_library() is None else 8
    assert parity_table(exported.parity).row_count == logits + 19
    assert summary_table(exported).row_count == 2 + 2 + 1
