"""Choosing a runtime."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cbn_deploy.errors import CheckpointError, ModelFileError
from cbn_deploy.runtime.factory import available_cpus, open_session


def test_auto_goes_by_the_suffix(colour_path: Path, checkpoint_path: Path) -> None:
    with open_session(colour_path) as session:
        assert session.describe().runtime == "onnxruntime"
    with open_session(checkpoint_path) as session:
        assert session.describe().runtime == "torch"


def test_auto_refuses_other_suffixes(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"neither a \.onnx nor a \.pt nor a \.engine"):
        open_session(tmp_path / "model.tflite")


def test_auto_says_that_a_folder_is_one(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="is a folder; give the path"):
        open_session(tmp_path)


def test_wrong_arguments_are_the_callers_fault(colour_path: Path) -> None:
    with pytest.raises(ValueError, match="runtime must be one of"):
        open_session(colour_path, "tensorflow")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="threads must be at least 1"):
        open_session(colour_path, threads=0)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_threads_are_explicit(colour_path: Path, runtime: str) -> None:
    with open_session(colour_path, runtime, threads=1) as session:  # type: ignore[arg-type]
        assert session.describe().threads == 1
    with open_session(colour_path, runtime) as session:  # type: ignore[arg-type]
        assert session.describe().threads == available_cpus()


def test_available_cpus_is_within_the_affinity_mask() -> None:
    assert 1 <= available_cpus() <= len(os.sched_getaffinity(0))


def test_a_missing_file_of_each_kind(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="does not exist"):
        open_session(tmp_path / "absent.onnx")
    with pytest.raises(CheckpointError):
        open_session(tmp_path / "absent.pt")


@pytest.mark.parametrize(
    ("runtime", "suffix", "extra"),
    [("onnxruntime", "onnx", "cpu"), ("openvino", "onnx", "openvino"), ("torch", "pt", "train")],
)
def test_a_missing_package_names_the_extra(tmp_path: Path, runtime: str, suffix: str, extra: str) -> None:
    program = f"""
import sys
sys.modules[{runtime!r}] = None  # what an absent package looks like to an import
sys.modules["torch"] = None
from cbn_deploy.errors import RuntimeUnavailableError
from cbn_deploy.runtime.factory import open_session
try:
    open_session({str(tmp_path / "model")!r} + ".{suffix}", {runtime!r})
except RuntimeUnavailableError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert f"cbn-deploy[{extra}]" in done.stdout
