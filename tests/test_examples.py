"""The examples run as they are, but for fewer epochs."""

from __future__ import annotations

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from cbn_deploy.runtime.onnx_file import read_onnx_file

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def test_own_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    spec = spec_from_file_location("own_network", EXAMPLES / "own_network.py")
    assert spec is not None
    assert spec.loader is not None
    example = module_from_spec(spec)
    spec.loader.exec_module(example)
    monkeypatch.setattr(example, "EPOCHS", 3)
    example.main(tmp_path / "digits.onnx")
    description = read_onnx_file(tmp_path / "digits.onnx").description
    assert description.architecture == "small convolutional network"
    assert description.class_counts[0] == 130
    printed = capsys.readouterr().out
    assert "5 mixture layers, parity on 256 inputs holds" in printed
    # Ten classes; after three epochs it knows far more than nothing.
    assert float(printed.split("mean recall of the classes ")[1].split("%")[0]) > 30
