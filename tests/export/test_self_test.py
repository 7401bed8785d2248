"""What an export records: right logits, and an allowance that holds for every runtime that is here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from cbn_deploy.errors import ModelFileError
from cbn_deploy.runtime.factory import open_session
from cbn_deploy.runtime.self_test import SelfTest, self_test_images
from export import ExportOptions, export_checkpoint


@pytest.fixture(scope="module")
def exported(checkpoint_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("self_test") / "model.onnx"
    return export_checkpoint(checkpoint_path, path, ExportOptions(inputs=28)).path


@pytest.mark.parametrize("runtime", ["onnxruntime", "onnxruntime without kernels"])
def test_the_record_holds_here(exported: Path, runtime: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if runtime != "onnxruntime":
        monkeypatch.setenv("CBN_DISABLE_NATIVE", "1")
    with open_session(exported, "onnxruntime", threads=1) as session:
        expected = SelfTest.of(session.description)
        assert expected is not None
        logits = session.run(self_test_images(session.description.preprocessing)).logits
        expected.check(logits)
        with pytest.raises(ModelFileError, match="self-test failed"):
            expected.check(logits + np.float32(1e-2))


def test_a_changed_weight_is_noticed(exported: Path, tmp_path: Path) -> None:
    model = onnx.load(exported)
    weight = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 4)
    changed = numpy_helper.to_array(weight).copy()
    changed[0, 0, 0, 0] += 0.5
    weight.CopyFrom(numpy_helper.from_array(changed, weight.name))
    damaged = tmp_path / "damaged.onnx"
    onnx.save(model, damaged)
    with open_session(damaged, "onnxruntime", threads=1) as session:
        expected = SelfTest.of(session.description)
        assert expected is not None
        with pytest.raises(ModelFileError, match="self-test failed"):
            expected.check(session.run(self_test_images(session.description.preprocessing)).logits)
