"""The GPU's candidates: PyTorch on CUDA, onnxruntime's CUDA provider, TensorRT with the plugin and with the op's body.

Every run takes images in the host's memory and returns logits there, as the CPU's candidates do; what the device alone
needs is measured apart, by its own events. TF32 is off everywhere: parity is with float64.
"""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import nn

from cbn_deploy.benchmark import DeviceClock
from cbn_deploy.errors import CbnError
from cbn_deploy.runtime.onnxruntime_cuda_session import OnnxRuntimeCudaSession
from cbn_deploy.runtime.tensorrt_session import TensorRtSession
from export.bench.compiler import quiet_compilation

__all__ = [
    "ClockKind",
    "compiled_on_cuda",
    "eager_on_cuda",
    "engine",
    "graphs_on_cuda",
    "onnxruntime_on_cuda",
    "tf32_off",
    "why_no_cuda",
    "why_no_onnxruntime_cuda",
    "why_no_tensorrt",
]

Run = Callable[[NDArray[np.float32]], NDArray[np.float32]]
# What a candidate's DeviceClock goes by: the device's events, or the host's clock where those are not to be had.
ClockKind = Literal["events", "host"]
_WARM_UPS = 3


def why_no_cuda() -> str | None:
    """One sentence if PyTorch has no GPU to run on."""
    if torch.cuda.is_available():
        return None
    return "PyTorch finds no NVIDIA GPU, or was installed without CUDA."


def why_no_onnxruntime_cuda() -> str | None:
    """One sentence if onnxruntime has no CUDA provider."""
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return "onnxruntime has no CUDA provider; pip uninstall onnxruntime, then pip install onnxruntime-gpu."
    return None


def why_no_tensorrt() -> str | None:
    """One sentence if engines cannot be built and run here."""
    from export.tensorrt import EngineOptions
    from export.tensorrt.full import check_full

    try:
        check_full(EngineOptions(runtime="tensorrt"))
    except CbnError as error:
        return str(error)
    return None


def tf32_off() -> Callable[[], None]:
    """Make PyTorch's float32 convolutions and products exact; returns what restores the setting."""
    settings = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)  # type: ignore[attr-defined]  # made at import
    before = [setting.fp32_precision for setting in settings]
    for setting in settings:
        setting.fp32_precision = "ieee"

    def restore() -> None:
        for setting, value in zip(settings, before, strict=True):
            setting.fp32_precision = value

    return restore


def eager_on_cuda(module: nn.Module) -> tuple[Run, DeviceClock]:
    """``module``, moved to the GPU, as it is."""
    return _on_cuda(_copied_to_cuda(module))


def compiled_on_cuda(module: nn.Module) -> tuple[Run, DeviceClock]:
    """``module``, moved to the GPU and compiled for each batch size."""
    compiled = torch.compile(_copied_to_cuda(module), dynamic=False, fullgraph=True)
    seen: set[int] = set()

    def call(images: torch.Tensor) -> torch.Tensor:
        if len(images) not in seen:
            with quiet_compilation():
                compiled(images)
            seen.add(len(images))
        logits: torch.Tensor = compiled(images)
        return logits

    return _on_cuda(call)


def graphs_on_cuda(module: nn.Module) -> tuple[Run, DeviceClock]:
    """``module``, moved to the GPU and recorded as one CUDA graph for each batch size."""
    model = _copied_to_cuda(module)
    graphs: dict[int, tuple[torch.cuda.CUDAGraph, torch.Tensor, torch.Tensor]] = {}

    def call(images: torch.Tensor) -> torch.Tensor:
        if len(images) not in graphs:
            graphs[len(images)] = _record(model, images)
        graph, given, logits = graphs[len(images)]
        given.copy_(images)
        graph.replay()
        return logits

    return _on_cuda(call)


def engine(path: Path, largest: int) -> TensorRtSession:
    """An exported file built by TensorRT for batches from 1 to ``largest``, which it is tuned for."""
    from export.tensorrt import EngineOptions, build_engine

    output = path.with_suffix(".engine")
    build_engine(path, output, EngineOptions(runtime="tensorrt", batch_sizes=(1, largest, largest)))
    return TensorRtSession(output)


def onnxruntime_on_cuda(path: Path, threads: int) -> tuple[OnnxRuntimeCudaSession, DeviceClock, ClockKind]:
    """An exported file in onnxruntime's CUDA provider, and a clock for it: of the device where PyTorch has CUDA.

    onnxruntime works on a stream of PyTorch's then, whose events tell the device's time. Without it the host's clock
    tells how long a run takes from its call until the GPU has finished, which launching is a part of.
    """
    if why_no_cuda() is None:
        new_stream: Callable[[], Any] = torch.cuda.Stream  # its constructor has no types
        stream = new_stream()  # not the current one: CUDA's default stream is 0, which onnxruntime takes for none
        session = OnnxRuntimeCudaSession(path, threads, stream=stream.cuda_stream)

        def by_events(images: NDArray[np.float32], calls: int) -> list[float]:
            return _between_events(session.run_on_device(images, wait=False), calls, stream)

        return session, by_events, "events"
    session = OnnxRuntimeCudaSession(path, threads)

    def by_host(images: NDArray[np.float32], calls: int) -> list[float]:
        run = session.run_on_device(images, wait=True)
        run()
        marks = [time.perf_counter()]
        for _ in range(calls):
            run()
            marks.append(time.perf_counter())
        return [1e3 * (after - before) for before, after in itertools.pairwise(marks)]

    return session, by_host, "host"


def _copied_to_cuda(module: nn.Module) -> nn.Module:
    """The CPU's candidates keep theirs."""
    return copy.deepcopy(module).to("cuda")


def _on_cuda(call: Callable[[torch.Tensor], torch.Tensor]) -> tuple[Run, DeviceClock]:
    def run(images: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            logits: NDArray[np.float32] = call(torch.from_numpy(images).to("cuda")).cpu().numpy()
        return logits

    def device_milliseconds(images: NDArray[np.float32], calls: int) -> list[float]:
        on_device = torch.from_numpy(images).to("cuda")
        with torch.inference_mode():
            return _between_events(lambda: call(on_device), calls, torch.cuda.current_stream())

    return run, device_milliseconds


def _between_events(enqueue: Callable[[], object], calls: int, stream: Any) -> list[float]:
    """Milliseconds from one event on ``stream`` to the next, with one call of ``enqueue`` between them."""
    event: Callable[..., Any] = torch.cuda.Event  # its constructor has no types
    marks = [event(enable_timing=True) for _ in range(calls + 1)]
    torch.cuda.synchronize()  # what was copied to the device is there
    enqueue()
    marks[0].record(stream)
    for mark in marks[1:]:
        enqueue()
        mark.record(stream)
    torch.cuda.synchronize()
    return [before.elapsed_time(after) for before, after in itertools.pairwise(marks)]


def _record(model: nn.Module, images: torch.Tensor) -> tuple[torch.cuda.CUDAGraph, torch.Tensor, torch.Tensor]:
    """A graph of one call, the memory that it reads and the memory that it writes."""
    given = images.clone()
    # Libraries set themselves up in the first calls, which must not be recorded, on a stream that is not the default.
    new_stream: Callable[[], Any] = torch.cuda.Stream  # its constructor has no types
    stream = new_stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UPS):
            model(given)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = model(given)
    return graph, given, logits
