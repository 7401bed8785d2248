"""The TensorRT Session's own work without a GPU: shapes, addresses, parts of batches, what is waited for and released.

NVIDIA's two packages are stood in for by the few functions that the Session calls: the CUDA runtime has the host's
memory for the GPU's and does what was enqueued only when the stream is waited for; the engine's answer is the mean of
every colour times ten. Nothing here says anything about TensorRT.
"""

# ruff: noqa: N802, N815 - CUDA's own names

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cbn_deploy.errors import InputError, ModelFileError, RuntimeUnavailableError
from cbn_deploy.runtime.tensorrt_session import TensorRtSession
from tests.cbn_deploy.runtime.test_tensorrt_session import write
from tests.onnx_models import SIZE

PAGE = 4096


class Cuda(ModuleType):
    """``cuda.bindings.runtime``."""

    cudaStreamNonBlocking = 1
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)

    def __init__(self) -> None:
        super().__init__("cuda.bindings.runtime")
        self.alive: dict[int, Any] = {}
        self.pending: list[Callable[[], None]] = []
        self.fail: str | None = None

    def _new(self, thing: Any, handle: int | None = None) -> tuple[int, int]:
        handle = handle or len(self.alive) + 1000
        while handle in self.alive:
            handle += 1
        self.alive[handle] = thing
        return 0, handle

    def _allocate(self, name: str, size: int) -> tuple[int, int | None]:
        if self.fail == name:
            return 2, None
        memory = ctypes.create_string_buffer(b"\xff" * (size + PAGE))  # NaN: nothing may be read before it is written
        return self._new(memory, ctypes.addressof(memory))

    def _release(self, handle: int) -> tuple[int]:
        assert not self.pending, "released while the stream still uses it"
        return self.cudaEventDestroy(handle)

    def cudaEventDestroy(self, event: int) -> tuple[int]:
        del self.alive[int(event)]
        return (0,)

    def cudaGetDeviceCount(self) -> tuple[int, int]:
        return 0, 1

    def cudaGetErrorString(self, status: int) -> tuple[int, bytes]:
        return 0, {2: b"out of memory"}[status]

    def cudaGetDeviceProperties(self, device: int) -> tuple[int, SimpleNamespace]:
        assert device == 0
        return 0, SimpleNamespace(name=b"Stand-in\0\0", major=9, minor=0)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[int, int]:
        assert flags == 1
        return self._new("stream")

    def cudaEventCreate(self) -> tuple[int, int]:
        return self._new("event")

    def cudaMalloc(self, size: int) -> tuple[int, int | None]:
        return self._allocate("cudaMalloc", size)

    def cudaMallocHost(self, size: int) -> tuple[int, int | None]:
        return self._allocate("cudaMallocHost", size)

    def cudaMemcpyAsync(self, to: int, source: int, size: int, kind: int, stream: int) -> tuple[int]:
        assert self.alive[stream] == "stream"
        assert kind in (1, 2)
        self.pending.append(lambda: ctypes.memmove(to, source, size) and None)
        return (0,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[int]:
        assert self.alive[stream] == "stream"
        while self.pending:
            self.pending.pop(0)()
        return (0,)

    def cudaEventRecord(self, event: int, stream: int) -> tuple[int]:
        assert (self.alive[event], self.alive[stream]) == ("event", "stream")
        return (0,)

    def cudaEventElapsedTime(self, start: int, stop: int) -> tuple[int, float]:
        assert start != stop
        assert not self.pending
        return 0, 1.5

    cudaFree = cudaFreeHost = cudaStreamDestroy = _release


class TensorRt(ModuleType):
    """``tensorrt``: an engine for 2 to 4 images."""

    __version__ = "11.4.0"

    def __init__(self, cuda: Cuda) -> None:
        super().__init__("tensorrt")
        self.cuda, self.batches, self.refuse, self.broken = cuda, [], False, False  # type: ignore[var-annotated]
        self.Logger = Logger
        self.Runtime = lambda _: SimpleNamespace(deserialize_cuda_engine=self._engine)

    def _engine(self, content: bytes) -> Any:
        assert content
        return None if self.broken else SimpleNamespace(create_execution_context=lambda: Context(self))


class Logger:
    ERROR = 1

    def __init__(self, level: int) -> None:
        assert level == self.ERROR


class Context:
    def __init__(self, trt: TensorRt) -> None:
        self.trt, self.addresses, self.shape = trt, {}, ()  # type: ignore[var-annotated]

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape
        return name == "images" and 2 <= shape[0] <= 4

    def execute_async_v3(self, stream: int) -> bool:
        assert self.trt.cuda.alive[stream] == "stream"
        if self.trt.refuse:
            return False
        shape = self.shape
        self.trt.batches.append(shape[0])
        self.trt.cuda.pending.append(lambda: self._compute(shape))
        return True

    def _compute(self, shape: tuple[int, ...]) -> None:
        def floats(name: str, count: int) -> np.ndarray:
            return np.ctypeslib.as_array((ctypes.c_float * count).from_address(self.addresses[name]))

        images = floats("images", int(np.prod(shape))).reshape(shape)
        floats("logits", shape[0] * 3)[:] = 10 * images.mean((2, 3)).ravel()


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    stand_in = Cuda()
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", stand_in)
    return stand_in


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch, cuda: Cuda) -> TensorRt:
    stand_in = TensorRt(cuda)
    monkeypatch.setitem(sys.modules, "tensorrt", stand_in)
    return stand_in


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path, runtime="tensorrt", version="11.4.0", batch_sizes=(2, 4, 4), implementation="plugin")


def images(count: int) -> np.ndarray:
    return np.random.default_rng(count).random((count, 3, SIZE, SIZE), dtype=np.float32)


@pytest.mark.parametrize(("count", "batches"), [(1, [2]), (2, [2]), (4, [4]), (5, [4, 2]), (11, [4, 4, 3])])
def test_any_batch_is_run_in_parts_that_the_engine_takes(
    trt: TensorRt, path: Path, count: int, batches: list[int]
) -> None:
    with TensorRtSession(path) as session:
        for given in (images(count), images(count) + 1):
            trt.batches.clear()
            logits = session.run(given).logits
            assert trt.batches == batches
            np.testing.assert_allclose(logits, 10 * given.mean((2, 3)), rtol=1e-5)
        info = session.describe()
    assert (info.kernel_path, info.device, info.runtime) == ("fused", "Stand-in", "tensorrt")
    assert not trt.cuda.alive


def test_answers_outlive_the_next_run(trt: TensorRt, path: Path) -> None:
    del trt
    with TensorRtSession(path) as session:
        first = session.run(images(2)).logits
        kept = first.copy()
        session.run(images(3))
    np.testing.assert_array_equal(first, kept)


def test_the_device_is_timed_call_by_call(trt: TensorRt, path: Path) -> None:
    with TensorRtSession(path) as session:
        assert session.device_milliseconds(images(3), 5) == [1.5] * 5
        assert trt.batches == [3] * 5
        trt.refuse = True
        with pytest.raises(RuntimeUnavailableError, match="could not run"):
            session.device_milliseconds(images(3), 5)
        assert list(trt.cuda.alive.values()).count("event") == 0
        assert trt.cuda.pending  # the images' copy, which closing has to wait for
    assert not trt.cuda.alive
    with pytest.raises(InputError, match="closed"):
        session.run(images(1))


@pytest.mark.parametrize("name", ["cudaMalloc", "cudaMallocHost"])
def test_a_session_that_finds_no_memory_leaves_none_taken(cuda: Cuda, trt: TensorRt, path: Path, name: str) -> None:
    del trt
    cuda.fail = name
    with pytest.raises(RuntimeUnavailableError, match=f"{name} said: out of memory"):
        TensorRtSession(path)
    assert not cuda.alive


def test_an_engine_of_another_version_is_one_sentence(trt: TensorRt, path: Path) -> None:
    trt.broken = True
    with pytest.raises(ModelFileError, match=r"built by version 11\.4\.0 for compute capability 8\.9: build it again"):
        TensorRtSession(path)
    assert not trt.cuda.alive
