"""Run ``model.engine`` with TensorRT, or with TensorRT-RTX if that is what built it, on an NVIDIA GPU."""

from __future__ import annotations

import importlib
import threading
from contextlib import ExitStack, closing
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbn_deploy.errors import InputError, ModelFileError, RuntimeUnavailableError
from cbn_deploy.runtime.cuda_memory import CudaBuffer, CudaRuntime, CudaTimer
from cbn_deploy.runtime.engine_file import EngineFile, EngineRuntime, TensorSpec, read_engine_file
from cbn_deploy.runtime.session import Prediction, Session, SessionInfo
from cbn_deploy.runtime.signature import INPUT, TensorSignature, check_signature, to_prediction

__all__ = ["TensorRtSession"]

_MODULES: dict[EngineRuntime, tuple[str, str]] = {
    "tensorrt": ("tensorrt", "pip install tensorrt-cu13 cuda-bindings"),
    "tensorrt-rtx": ("tensorrt_rtx_bindings", "pip install tensorrt-rtx-cu13-libs tensorrt-rtx-cu13-bindings"),
}
_FLOAT32_BYTES = 4


class TensorRtSession(Session):
    """An engine on the first visible CUDA device, in its own stream; ``threads`` is ignored, the GPU does the work.

    Runs take turns: an engine has one execution context here, and buffers for its largest batch. Larger batches are
    run in parts; smaller ones than its smallest are filled up.

    Raises:
        ModelFileError: the engine or the description beside it is missing, damaged or built by another version.
        RuntimeUnavailableError: TensorRT, ``cuda-bindings`` or a GPU is absent.
    """

    def __init__(self, path: Path, threads: int | None = None) -> None:
        del threads
        file = read_engine_file(Path(path))
        self.description = file.description.model
        self._engine_description = file.description
        self._file = file.path.name
        _check_signature(file)
        self._trt = _load_package(file.description.runtime)
        self._lock = threading.Lock()
        with ExitStack() as resources:
            self._cuda = CudaRuntime()
            resources.callback(self._cuda.close)
            self._owners, context = _execution_context(self._trt, file)
            self._buffers = {
                spec.name: self._buffer(spec, resources)
                for spec in (*file.description.inputs, *file.description.outputs)
            }
            for name, buffer in self._buffers.items():
                context.set_tensor_address(name, buffer.device)
            # A run that failed half-way may have left a copy on the stream.
            resources.callback(self._cuda.synchronize)
            self._resources = resources.pop_all()
        self._context: Any | None = context

    def _buffer(self, spec: TensorSpec, resources: ExitStack) -> CudaBuffer:
        largest = self._engine_description.batch_sizes[2]
        buffer = CudaBuffer(self._cuda, int(np.prod(_of_batch(spec, largest))) * _FLOAT32_BYTES)
        resources.callback(buffer.close)
        return buffer

    def _run(self, images: NDArray[np.float32]) -> Prediction:
        largest = self._engine_description.batch_sizes[2]
        with self._lock:
            parts = [self._run_part(images[start : start + largest]) for start in range(0, len(images), largest)]
        return to_prediction({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})

    def device_milliseconds(self, images: NDArray[np.float32], calls: int) -> list[float]:
        """Time of each of ``calls`` executions on the device, without the copies to and from it.

        Args:
            images: as for :meth:`run`, no more than the largest batch.
            calls: how many.
        """
        with self._lock:
            context = self._open_context()
            self._copy_in(context, images)
            times = []
            with closing(CudaTimer(self._cuda)) as timer:
                for _ in range(calls):
                    timer.start()
                    self._execute(context)
                    timer.stop()
                    self._cuda.synchronize()
                    times.append(timer.milliseconds())
        return times

    def describe(self) -> SessionInfo:
        """The kernel path is "fused" where our plugin is in the engine, "portable" where the op's body was built."""
        return SessionInfo(
            runtime=self._engine_description.runtime,
            version=self._trt.__version__,
            kernel_path="fused" if self._engine_description.implementation == "plugin" else "portable",
            threads=1,
            device=self._cuda.device_name,
            file=self._file,
        )

    def close(self) -> None:
        """Release the engine and its memory once the run that is under way has finished."""
        with self._lock:
            self._context = self._owners = None
            self._resources.close()

    def _run_part(self, images: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """One execution: everything is enqueued on the stream, which is waited for once, at the end."""
        context = self._open_context()
        batch = self._copy_in(context, images)
        self._execute(context)
        shapes = {spec.name: _of_batch(spec, batch) for spec in self._engine_description.outputs}
        for name, shape in shapes.items():
            self._cuda.to_host(self._buffers[name], int(np.prod(shape)) * _FLOAT32_BYTES)
        self._cuda.synchronize()
        return {name: self._buffers[name].array(shape)[: len(images)].copy() for name, shape in shapes.items()}

    def _copy_in(self, context: Any, images: NDArray[np.float32]) -> int:
        """Enqueue the copy of ``images``, filled up to the engine's smallest batch; returns the batch."""
        batch = max(len(images), self._engine_description.batch_sizes[0])
        shape = (batch, *images.shape[1:])
        buffer = self._buffers[INPUT]
        host = buffer.array(shape)
        host[: len(images)] = images
        host[len(images) :] = images[0]
        context.set_input_shape(INPUT, shape)
        self._cuda.to_device(buffer, host.nbytes)
        return batch

    def _execute(self, context: Any) -> None:
        if not context.execute_async_v3(self._cuda.stream):
            raise RuntimeUnavailableError(f"TensorRT could not run {self._file}; its log says why.")

    def _open_context(self) -> Any:
        if self._context is None:
            raise InputError("The session is closed; open the model again.")
        return self._context


def _load_package(runtime: EngineRuntime) -> ModuleType:
    module, command = _MODULES[runtime]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise RuntimeUnavailableError(
            f"The engine needs {runtime}, which is not installed ({error}); install it with: {command}."
        ) from error


def _execution_context(trt: ModuleType, file: EngineFile) -> tuple[Any, Any]:
    """What must outlive the engine's context, and the context."""
    runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
    engine = runtime.deserialize_cuda_engine(file.content)
    context = None if engine is None else engine.create_execution_context()
    if context is None:
        built = file.description
        raise ModelFileError(
            f"{file.path} cannot be loaded by {built.runtime} {trt.__version__} on this GPU; it was built by version "
            f"{built.version} for compute capability {', '.join(built.compute_capabilities)}: build it again here."
        )
    return (runtime, engine), context


def _check_signature(file: EngineFile) -> None:
    def signatures(specs: tuple[TensorSpec, ...]) -> dict[str, TensorSignature]:
        return {spec.name: TensorSignature(spec.dtype == "float32", spec.shape) for spec in specs}

    description = file.description
    check_signature(file.path, description.model, signatures(description.inputs), signatures(description.outputs))


def _of_batch(spec: TensorSpec, batch: int) -> tuple[int, ...]:
    """The tensor's shape for ``batch`` images; nothing but the batch is dynamic."""
    return (batch, *(int(size) for size in spec.shape[1:] if size is not None))
