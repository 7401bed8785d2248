"""The TensorRT Session on a machine that lacks something, which is found out in order: file, package, driver, GPU."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from cbn_deploy.errors import ModelFileError, RuntimeUnavailableError
from cbn_deploy.runtime.cuda_memory import CudaRuntime
from cbn_deploy.runtime.engine_file import TensorSpec, description_path, read_engine_file
from cbn_deploy.runtime.factory import open_session
from tests.engine_files import ENGINE, describe_engine
from tests.onnx_models import SIZE

HAS_CUDA = importlib.util.find_spec("cuda") is not None and importlib.util.find_spec("cuda.bindings") is not None


def write(folder: Path, **changes: object) -> Path:
    path = folder / "model.engine"
    path.write_bytes(ENGINE)
    description_path(path).write_text(json.dumps(describe_engine(**changes).to_dict()))
    return path


def test_a_description_reads_back(tmp_path: Path) -> None:
    assert read_engine_file(write(tmp_path)).description == describe_engine()


@pytest.mark.parametrize(
    ("field", "text", "sentence"),
    [
        ("engine_format_version", "Infinity", "description is incomplete or damaged"),
        ("batch_sizes", "[1, 4, 1e999]", "description is incomplete or damaged"),
        ("version", "[" * 200_000, "is not JSON"),
        ("outputs", r'[{"name": "posterior.\ud800", "dtype": "float32", "shape": []}]', "surrogates not allowed"),
    ],
    ids=["version without end", "batch without end", "lists without end", "half a surrogate pair"],
)
def test_a_damaged_description_is_one_sentence(tmp_path: Path, field: str, text: str, sentence: str) -> None:
    path = write(tmp_path)
    beside = description_path(path)
    plain = json.loads(beside.read_text())
    before = f'"{field}": {json.dumps(plain[field])}'
    assert before in beside.read_text()
    beside.write_text(beside.read_text().replace(before, f'"{field}": {text}'))
    with pytest.raises(ModelFileError, match=sentence):
        read_engine_file(path)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"inputs": (TensorSpec("pixels", "float32", (None, 3, SIZE, SIZE)),)}, "must have the one input 'images'"),
        ({"inputs": (TensorSpec("images", "float16", (None, 3, SIZE, SIZE)),)}, "not float32"),
        ({"outputs": (TensorSpec("logits", "float32", (None, 4)),)}, "'logits' must be float32 of shape"),
    ],
)
def test_an_engine_of_another_signature(tmp_path: Path, changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(ModelFileError, match=sentence):
        open_session(write(tmp_path, **changes))


@pytest.mark.parametrize(
    ("runtime", "module", "package"),
    [("tensorrt", "tensorrt", "tensorrt-cu13"), ("tensorrt-rtx", "tensorrt_rtx_bindings", "tensorrt-rtx-cu13-libs")],
)
def test_a_missing_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime: str, module: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(RuntimeUnavailableError, match=f"needs {runtime}, .* pip install {package}"):
        open_session(write(tmp_path, runtime=runtime))


def test_without_cuda_bindings_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(RuntimeUnavailableError, match="pip install cuda-bindings"):
        CudaRuntime()


@pytest.mark.skipif(not HAS_CUDA, reason="cuda-bindings is not installed")
def test_without_a_gpu_one_sentence_says_so() -> None:
    try:
        cuda = CudaRuntime()
    except RuntimeUnavailableError as error:
        assert "An NVIDIA GPU" in str(error)  # noqa: PT017 - with a GPU there is nothing to raise
    else:
        assert float(cuda.compute_capability) >= 7.5
        cuda.close()
