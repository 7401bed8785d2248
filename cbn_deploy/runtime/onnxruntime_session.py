"""Run ``model.onnx`` with onnxruntime on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from cbn_deploy.errors import InputError, ModelFileError
from cbn_deploy.native_library import NativeLibrary, native_library
from cbn_deploy.op_forms import OP_DOMAIN
from cbn_deploy.runtime.factory import available_cpus
from cbn_deploy.runtime.onnx_file import OnnxFile, read_onnx_file
from cbn_deploy.runtime.session import Prediction, Session, SessionInfo
from cbn_deploy.runtime.signature import INPUT, TensorSignature, check_signature, to_prediction

__all__ = ["OnnxRuntimeSession", "ProviderSession", "session_options"]


class ProviderSession(Session):
    """What sessions of onnxruntime's providers share: a loaded InferenceSession with the right signature, and its runs.

    Args:
        file: the file that was read.
        session: the InferenceSession.
        threads: intra-op threads.

    Raises:
        ModelFileError: the file has the wrong inputs or outputs.
    """

    def __init__(self, file: OnnxFile, session: Any, threads: int) -> None:
        self.description = file.description
        self._file = file.path.name
        self._threads = threads
        check_signature(
            file.path, file.description, _signatures(session.get_inputs()), _signatures(session.get_outputs())
        )
        self._outputs: list[str] = [output.name for output in session.get_outputs()]
        self._session: Any | None = session

    def _run(self, images: NDArray[np.float32]) -> Prediction:
        session = self._open_session()
        return to_prediction(dict(zip(self._outputs, session.run(self._outputs, {INPUT: images}), strict=True)))

    def close(self) -> None:
        """Release the model; runs that are under way finish."""
        self._session = None

    def _open_session(self) -> Any:
        session = self._session  # one read: close() may come between
        if session is None:
            raise InputError("The session is closed; open the model again.")
        return session


class OnnxRuntimeSession(ProviderSession):
    """An ONNX file in onnxruntime's CPU provider; ``threads`` threads share one run.

    A file with the op's nodes runs them in the native library where that is installed and not turned off.

    Raises:
        ModelFileError: the file is missing, damaged, does not describe itself or has the wrong inputs or outputs.
    """

    def __init__(self, path: Path, threads: int | None = None, *, spin: bool = True) -> None:
        file = read_onnx_file(path)
        threads = threads or available_cpus()
        library = native_library() if OP_DOMAIN in file.domains else None
        self._instruction_set = None if library is None else library.instruction_set
        session, self._block = _load(file, threads, library, spin)
        super().__init__(file, session, threads)

    def describe(self) -> SessionInfo:
        """The kernel path is "fused" if the native library runs the op, "portable" if its standard-ops body does."""
        return SessionInfo(
            runtime="onnxruntime",
            version=onnxruntime.__version__,
            kernel_path="portable" if self._instruction_set is None else "fused",
            instruction_set=self._instruction_set,
            block=self._block,
            threads=self._threads,
            device="cpu",
            file=self._file,
        )


def _load(file: OnnxFile, threads: int, library: NativeLibrary | None, spin: bool) -> tuple[Any, int | None]:
    try:
        if library is None:
            options = session_options(threads, None, spin)
            return onnxruntime.InferenceSession(file.content, options, providers=["CPUExecutionProvider"]), None
        return _load_fused(file.content, lambda: session_options(threads, library, spin))
    except Exception as error:  # onnxruntime's exceptions share no public base class
        reason = " ".join(str(error).split())
        if file.description.precision == "bf16":
            reason = (
                "it has no bfloat16 convolutions for CPUs; build an engine with cbn-export --target tensorrt, or "
                f"export with --precision fp32 ({reason})."
            )
        raise ModelFileError(f"onnxruntime cannot load {file.path}: {reason}") from error


def session_options(threads: int, library: NativeLibrary | None, spin: bool = True) -> Any:
    """SessionOptions for ``threads`` threads, which ``spin`` or sleep between their tasks; kernels of ``library``."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    if not spin:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4  # what fails is raised; onnxruntime would print it as well
    if library is not None:
        # Its kernels take precedence over the op's body in the file.
        options.register_custom_ops_library(str(library.path))
    return options


def _load_fused(content: bytes, make_options: Callable[[], Any]) -> tuple[Any, int | None]:
    try:
        from cbn_deploy.runtime.native_layouts import native_layout_session
    except ModuleNotFoundError:  # without the `onnx` package the graph cannot be edited: tensors are reordered
        return onnxruntime.InferenceSession(content, make_options(), providers=["CPUExecutionProvider"]), None
    return native_layout_session(content, make_options)


def _signatures(values: list[Any]) -> dict[str, TensorSignature]:
    """What a model says of its inputs or outputs.

    Args:
        values: onnxruntime's NodeArgs; dimensions are integers where fixed, names or None where dynamic.
    """
    return {
        value.name: TensorSignature(
            is_float32=value.type == "tensor(float)",
            shape=tuple(size if isinstance(size, int) else None for size in value.shape or ()),
        )
        for value in values
    }
