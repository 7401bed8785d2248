"""Run ``model.onnx`` with OpenVINO on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray

from cbn_deploy.errors import InputError, ModelFileError
from cbn_deploy.runtime.factory import available_cpus
from cbn_deploy.runtime.onnx_file import OnnxFile, read_onnx_file
from cbn_deploy.runtime.session import Prediction, Session, SessionInfo
from cbn_deploy.runtime.signature import INPUT, TensorSignature, check_signature, to_prediction

__all__ = ["OpenVinoSession"]


class OpenVinoSession(Session):
    """An ONNX file on OpenVINO's CPU device; ``threads`` threads share one run.

    OpenVINO reads flat graphs only: a file with model-local functions is inlined in memory if ``onnx`` is installed.

    Raises:
        ModelFileError: the file is missing, damaged, does not describe itself or has the wrong inputs or outputs, or it
            needs inlining and ``onnx`` is absent.
    """

    def __init__(self, path: Path, threads: int | None = None) -> None:
        file = read_onnx_file(path)
        self.description = file.description
        self._file = file.path.name
        self._threads = threads or available_cpus()
        self._compiled: Any | None = _compile(file, self._threads)

    def _run(self, images: NDArray[np.float32]) -> Prediction:
        compiled = self._compiled  # one read: close() may come between
        if compiled is None:
            raise InputError("The session is closed; open the model again.")
        # A request holds its own buffers, so one request a run is what makes concurrent runs safe.
        results = compiled.create_infer_request().infer({INPUT: images})
        return to_prediction({port.get_any_name(): value for port, value in results.items()})

    def describe(self) -> SessionInfo:
        """OpenVINO runs the op's standard-ops body: the "portable" kernel path."""
        return SessionInfo(
            runtime="openvino",
            version=openvino.__version__,
            kernel_path="portable",
            threads=self._threads,
            device="cpu",
            file=self._file,
        )

    def close(self) -> None:
        """Release the model; runs that are under way finish."""
        self._compiled = None


def _compile(file: OnnxFile, threads: int) -> Any:
    content = _inline(file) if file.has_functions else file.content
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        # Left to itself OpenVINO computes in bfloat16 on CPUs that have it, and the answers change.
        "INFERENCE_PRECISION_HINT": "f32",
    }
    try:
        core = openvino.Core()
        compiled = core.compile_model(core.read_model(model=content), "CPU", settings)
    except Exception as error:  # OpenVINO raises plain RuntimeError and several types of its own
        reason = " ".join(str(error).split())
        raise ModelFileError(f"OpenVINO cannot load {file.path}: {reason}") from error
    check_signature(file.path, file.description, _signatures(compiled.inputs), _signatures(compiled.outputs))
    return compiled


def _signatures(ports: list[Any]) -> dict[str, TensorSignature]:
    return {
        port.get_any_name(): TensorSignature(
            is_float32=port.get_element_type() == openvino.Type.f32,
            shape=tuple(None if size.is_dynamic else size.get_length() for size in port.get_partial_shape()),
        )
        for port in ports
    }


def _inline(file: OnnxFile) -> bytes:
    try:
        import onnx
        import onnx.inliner
    except ModuleNotFoundError:
        raise ModelFileError(
            f"OpenVINO cannot read the functions in {file.path}; export it with cbn-export --inline, "
            "or install onnx to have it inlined here."
        ) from None
    try:
        flat: bytes = onnx.inliner.inline_local_functions(onnx.load_model_from_string(file.content)).SerializeToString()
    except Exception as error:  # protobuf and onnx raise several types, none public
        raise ModelFileError(f"The functions in {file.path} cannot be inlined ({error}); export it again.") from error
    return flat
