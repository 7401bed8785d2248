"""Run ``model.onnx`` with onnxruntime's CUDA provider on an NVIDIA GPU."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from cbn_deploy.cuda_kernels import register_folder, register_kernel
from cbn_deploy.errors import ModelFileError, RuntimeUnavailableError
from cbn_deploy.native_library import NativeLibrary, native_library
from cbn_deploy.op_forms import OP_DOMAIN
from cbn_deploy.runtime.factory import available_cpus
from cbn_deploy.runtime.onnx_file import OnnxFile, read_onnx_file
from cbn_deploy.runtime.onnxruntime_session import ProviderSession, session_options
from cbn_deploy.runtime.session import SessionInfo
from cbn_deploy.runtime.signature import INPUT

__all__ = ["OnnxRuntimeCudaSession"]

_PROVIDER = "CUDAExecutionProvider"
_DEVICE = "cuda"
_log = logging.getLogger(__name__)


class OnnxRuntimeCudaSession(ProviderSession):
    """An ONNX file on the first visible CUDA device; ``threads`` threads run what onnxruntime leaves to the CPU.

    The op's nodes run in the native library where there are compiled kernels for them: those of the folder
    ``CBN_CUDA_KERNELS``, or, where that is not set, what torch and Triton compile here. Without any they run as their
    body of standard ops, on the GPU as well, and a warning says why.

    Args:
        path: the file.
        threads: ``None``: one a CPU.
        stream: a CUDA stream (``cudaStream_t``) for all work, not 0, which onnxruntime takes for none; it must outlive
            the Session. ``None``: one of onnxruntime's own.

    Raises:
        ModelFileError: the file is missing, damaged, does not describe itself or has the wrong inputs or outputs.
        RuntimeUnavailableError: this onnxruntime has no CUDA provider, or it does not start.
        SettingsError: ``CBN_CUDA_KERNELS`` is not a folder of compiled kernels.
        ValueError: ``stream`` is 0.
    """

    def __init__(self, path: Path, threads: int | None = None, *, stream: int | None = None) -> None:
        if stream == 0:
            raise ValueError("stream must not be 0, CUDA's default stream: onnxruntime takes it for none")
        _check_provider()
        file = read_onnx_file(path)
        threads = threads or available_cpus()
        session, self._fused = _load(file, threads, stream)
        super().__init__(file, session, threads)

    def run_on_device(self, images: NDArray[np.float32], *, wait: bool) -> Callable[[], None]:
        """Copy ``images`` to the GPU, and return what runs them once, with results that stay there: to be timed.

        Args:
            images: (B, 3, H, W).
            wait: whether a run ends when the GPU has finished, or when all is enqueued on the stream.

        Raises:
            InputError: the Session is closed.
        """
        session = self._open_session()
        binding, options = session.io_binding(), onnxruntime.RunOptions()
        options.add_run_config_entry("disable_synchronize_execution_providers", "0" if wait else "1")
        make = onnxruntime.OrtValue
        binding.bind_ortvalue_input(INPUT, make.ortvalue_from_numpy(images, _DEVICE, 0))
        for output in session.get_outputs():
            shape = [len(images), *output.shape[1:]]
            binding.bind_ortvalue_output(output.name, make.ortvalue_from_shape_and_type(shape, np.float32, _DEVICE, 0))
        return lambda: session.run_with_iobinding(binding, options)

    def describe(self) -> SessionInfo:
        """The kernel path is "fused" if the native library runs the op, "portable" if its standard-ops body does."""
        return SessionInfo(
            runtime="onnxruntime",
            version=onnxruntime.__version__,
            kernel_path="fused" if self._fused else "portable",
            threads=self._threads,
            device="cuda",
            file=self._file,
        )


def _check_provider() -> None:
    if _PROVIDER not in onnxruntime.get_available_providers():
        raise RuntimeUnavailableError(
            "This onnxruntime has no CUDA provider; run: pip uninstall -y onnxruntime && pip install onnxruntime-gpu."
        )


def _providers(stream: int | None) -> list[str | tuple[str, dict[str, str]]]:
    # Float32 convolutions stay float32, as in every other runtime.
    options = {"use_tf32": "0"}
    if stream is not None:
        options["user_compute_stream"] = str(stream)
    return [(_PROVIDER, options), "CPUExecutionProvider"]


def _load(file: OnnxFile, threads: int, stream: int | None) -> tuple[Any, bool]:
    library = native_library() if OP_DOMAIN in file.domains else None
    if library is not None and _register_kernels(library, file.content):
        try:
            return _open(file.content, session_options(threads, library), stream), True
        except RuntimeUnavailableError:
            raise
        except Exception as error:  # noqa: BLE001 - onnxruntime's exceptions share no public base class
            _runs_portably(error)
    try:
        return _open(file.content, session_options(threads, None), stream), False
    except RuntimeUnavailableError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ModelFileError(f"onnxruntime cannot load {file.path}: {reason}") from error


def _open(content: bytes, options: Any, stream: int | None) -> Any:
    needed = "it needs an NVIDIA GPU, and the driver, CUDA and cuDNN that this onnxruntime was built for"
    try:
        # Left alone, onnxruntime prints what is wrong and goes on with the CPU, when a model is loaded or at any run.
        session = onnxruntime.InferenceSession(content, options, providers=_providers(stream), enable_fallback=0)
        session.disable_fallback()
    except (RuntimeError, ValueError) as error:  # the provider's; what is wrong with a model has other exceptions
        reason = " ".join(str(error).split())
        raise RuntimeUnavailableError(f"onnxruntime's CUDA provider does not start; {needed} ({reason}).") from error
    if _PROVIDER not in session.get_providers():
        raise RuntimeUnavailableError(f"onnxruntime's CUDA provider does not start; {needed}.")
    return session


def _register_kernels(library: NativeLibrary, content: bytes) -> bool:
    """Whether the library now has kernels to try."""
    folder = os.environ.get("CBN_CUDA_KERNELS", "")
    if folder:
        register_folder(library, Path(folder))
        return True
    try:
        from cbn_deploy.kernels.triton.model_kernels import compile_for_model
    except ImportError as error:
        _runs_portably(
            f"{error}; install torch, Triton and onnx, or compile its kernels elsewhere with python -m "
            "cbn_deploy.kernels.triton.model_kernels and give their folder in CBN_CUDA_KERNELS"
        )
        return False
    try:
        kernels = compile_for_model(content)
    except Exception as error:  # noqa: BLE001 - whatever Triton raises, the body of the op still runs
        _runs_portably(error)
        return False
    for kernel in kernels:
        register_kernel(library, kernel.contract.to_json(), kernel.ptx)
    return True


def _runs_portably(reason: object) -> None:
    _log.warning("The layer runs portably on the GPU, which is slower: %s.", " ".join(str(reason).split()).rstrip("."))
