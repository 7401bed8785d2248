"""onnxruntime records what it runs, below the user's home folder, and sends it; with us it does not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

RUN_A_MODEL = """
import {package}
import numpy, onnxruntime
from onnx import TensorProto, helper
x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "relu", [x], [y])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
session.run(None, {{"x": numpy.ones(1, numpy.float32)}})
"""


# What else decides about it: onnxruntime records nothing in continuous integration.
_DECIDE = ("CI", "ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME")


def recorded(package: str, home: Path, **environment: str) -> list[Path]:
    """What onnxruntime leaves in ``home`` after a model was run."""
    inherited = {name: value for name, value in os.environ.items() if name not in _DECIDE}
    code = RUN_A_MODEL.format(package=package)
    subprocess.run([sys.executable, "-c", code], env={**inherited, "HOME": str(home), **environment}, check=True)
    return list(home.glob("**/.onnxruntime/*"))


@pytest.mark.parametrize("package", ["export", "cbn_deploy.runtime.onnxruntime_session", "serving.cli"])
def test_nothing_is_recorded(package: str, tmp_path: Path) -> None:
    assert recorded(package, tmp_path) == []


def test_whoever_wants_it_has_it(tmp_path: Path) -> None:
    if not recorded("onnxruntime", tmp_path):
        pytest.skip("this onnxruntime records nothing by itself, so nothing here can tell")
    assert recorded("export", tmp_path / "other", ORT_DISABLE_TELEMETRY="0") != []
