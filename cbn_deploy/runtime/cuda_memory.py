"""The little of CUDA's runtime that a Session needs, through NVIDIA's ``cuda-bindings``: buffers, a stream, events."""

from __future__ import annotations

import ctypes
import importlib
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbn_deploy.errors import RuntimeUnavailableError

__all__ = ["CudaBuffer", "CudaRuntime", "CudaTimer"]


class CudaRuntime:
    """The first CUDA device that this process may see (CUDA_VISIBLE_DEVICES), and one stream of its own on it.

    Attributes:
        device_name: such as "NVIDIA H100 80GB HBM3".
        compute_capability: such as "9.0".
        stream: its handle, as an integer.

    Raises:
        RuntimeUnavailableError: ``cuda-bindings``, the driver or a GPU is absent.
    """

    def __init__(self) -> None:
        self._cuda = _load()
        self._require_device()
        properties = self.call("cudaGetDeviceProperties", 0)
        self.device_name = properties.name.decode().rstrip("\0")
        self.compute_capability = f"{properties.major}.{properties.minor}"
        # Not the default stream, which would make TensorRT synchronise the device.
        self._stream = self.call("cudaStreamCreateWithFlags", self._cuda.cudaStreamNonBlocking)
        self.stream = int(self._stream)

    def call(self, name: str, *arguments: Any) -> Any:
        """Call a function of the CUDA runtime; its result without the status.

        Raises:
            RuntimeUnavailableError: the status is not success; an error of the device is not one that we can mend.
        """
        status, *results = getattr(self._cuda, name)(*arguments)
        if int(status) != 0:
            _, text = self._cuda.cudaGetErrorString(status)
            raise RuntimeUnavailableError(f"{name} said: {text.decode()}.")
        return results[0] if results else None

    def to_device(self, buffer: CudaBuffer, size: int) -> None:
        """Enqueue the copy of the first ``size`` bytes of ``buffer`` to the device."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self.call("cudaMemcpyAsync", buffer.device, buffer.pinned, size, kind, self._stream)

    def to_host(self, buffer: CudaBuffer, size: int) -> None:
        """Enqueue the copy of the first ``size`` bytes of ``buffer`` from the device."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self.call("cudaMemcpyAsync", buffer.pinned, buffer.device, size, kind, self._stream)

    def synchronize(self) -> None:
        """Wait until all that was enqueued on the stream is done."""
        self.call("cudaStreamSynchronize", self._stream)

    def close(self) -> None:
        """Destroy the stream."""
        self.call("cudaStreamDestroy", self._stream)

    def _require_device(self) -> None:
        try:
            count = self.call("cudaGetDeviceCount")
        except (RuntimeUnavailableError, RuntimeError) as error:  # the latter from cuda-bindings without any driver
            raise RuntimeUnavailableError(
                f"An NVIDIA GPU and its driver are needed, and none was found: {error}"
            ) from error
        if count < 1:
            raise RuntimeUnavailableError("An NVIDIA GPU is needed, and none was found.")


class CudaBuffer:
    """Memory for one tensor at its largest, on the device and page-locked on the host.

    Attributes:
        device: address on the device.
        pinned: address on the host.
    """

    def __init__(self, cuda: CudaRuntime, size: int) -> None:
        self._cuda = cuda
        self.device = int(cuda.call("cudaMalloc", size))
        try:
            self.pinned = int(cuda.call("cudaMallocHost", size))
        except RuntimeUnavailableError:
            cuda.call("cudaFree", self.device)
            raise
        self._bytes = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(self.pinned))

    def array(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """The host's part, as float32 of ``shape``; a view."""
        size = int(np.prod(shape)) * np.dtype(np.float32).itemsize
        return self._bytes[:size].view(np.float32).reshape(shape)

    def close(self) -> None:
        """Free both parts; views of the host's part must not be used any more."""
        self._cuda.call("cudaFree", self.device)
        self._cuda.call("cudaFreeHost", self.pinned)


class CudaTimer:
    """Time between two points of a stream, measured by the device itself."""

    def __init__(self, cuda: CudaRuntime) -> None:
        self._cuda = cuda
        self._start, self._stop = cuda.call("cudaEventCreate"), cuda.call("cudaEventCreate")

    def start(self) -> None:
        """Mark the beginning."""
        self._cuda.call("cudaEventRecord", self._start, self._cuda.stream)

    def stop(self) -> None:
        """Mark the end."""
        self._cuda.call("cudaEventRecord", self._stop, self._cuda.stream)

    def milliseconds(self) -> float:
        """Time from the last start to the last stop; the stream must have been synchronised."""
        return float(self._cuda.call("cudaEventElapsedTime", self._start, self._stop))

    def close(self) -> None:
        """Destroy the events."""
        self._cuda.call("cudaEventDestroy", self._start)
        self._cuda.call("cudaEventDestroy", self._stop)


def _load() -> ModuleType:
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except ImportError as error:
        raise RuntimeUnavailableError(
            f"cuda-bindings is not installed ({error}); install it with: pip install cuda-bindings."
        ) from error
