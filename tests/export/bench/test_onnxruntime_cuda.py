"""How onnxruntime on CUDA is timed, without a GPU: its CPU provider takes the provider's place, stand-ins PyTorch's
streams and events. Nothing here says that CUDA's provider takes the stream; what it is given, and when, is checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from rich.console import Console

from cbn_deploy.errors import InputError
from cbn_deploy.runtime import onnxruntime_cuda_session
from cbn_deploy.runtime.factory import open_session
from cbn_deploy.runtime.onnxruntime_cuda_session import OnnxRuntimeCudaSession
from export import ExportResult
from export.bench import gpu
from export.bench.run import BenchOptions, bench_checkpoint
from export.bench.table import render

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
STREAM = 4321


class Log:
    """What happened, in order, and what a session was opened with."""

    def __init__(self) -> None:
        self.happened: list[str] = []
        self.providers: list[Any] = []
        self.asynchronous: list[str] = []
        self.bindings: list[Any] = []


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    """onnxruntime's CPU provider under the name of CUDA's."""
    log = Log()

    class Session(onnxruntime.InferenceSession):
        def __init__(self, content: bytes, options: Any, *, providers: list[Any], **settings: Any) -> None:
            log.providers.append(providers[0])
            super().__init__(content, options, providers=[CPU], **settings)

        def get_providers(self) -> list[str]:
            return [CUDA, CPU]

        def run_with_iobinding(self, binding: Any, options: Any) -> None:
            log.happened.append("run")
            log.bindings.append(binding)
            log.asynchronous.append(options.get_run_config_entry("disable_synchronize_execution_providers"))
            super().run_with_iobinding(binding, options)

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(onnxruntime_cuda_session, "_DEVICE", "cpu")
    monkeypatch.setattr(onnxruntime_cuda_session, "native_library", lambda: None)
    return log


@pytest.fixture
def torch_with_cuda(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stream:
        cuda_stream = STREAM

    class Event:
        made = 0

        def __init__(self, *, enable_timing: bool) -> None:
            assert enable_timing
            self.time = 0.0

        def record(self, stream: Stream) -> None:
            assert stream.cuda_stream == STREAM
            log.happened.append("event")
            Event.made += 1
            self.time = 7.0 * Event.made**2

        def elapsed_time(self, end: Event) -> float:
            assert log.happened[-1] == "synchronize"
            return end.time - self.time

    monkeypatch.setattr(gpu, "why_no_cuda", lambda: None)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: log.happened.append("synchronize"))


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((3, 3, 32, 32)).astype(np.float32)


@pytest.mark.usefixtures("torch_with_cuda")
def test_runs_are_timed_by_events_on_the_stream_that_onnxruntime_was_given(
    exported: ExportResult, images: np.ndarray, log: Log
) -> None:
    session, clock, kind = gpu.onnxruntime_on_cuda(exported.path, 1)
    assert kind == "events"
    assert log.providers == [(CUDA, {"use_tf32": "0", "user_compute_stream": str(STREAM)})]
    with session:
        assert clock(images, 3) == [21.0, 35.0, 49.0]
        expected = session.run(images).logits
    # Copies are over before anything is timed; nobody waits between one run and the next.
    assert log.happened == [
        "synchronize",
        "run",
        "event",
        "run",
        "event",
        "run",
        "event",
        "run",
        "event",
        "synchronize",
    ]
    assert log.asynchronous == ["1"] * 4
    np.testing.assert_array_equal(log.bindings[-1].copy_outputs_to_cpu()[0], expected)


def test_without_cuda_in_torch_the_hosts_clock_waits_for_every_run(
    exported: ExportResult, images: np.ndarray, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "why_no_cuda", lambda: "PyTorch finds no NVIDIA GPU.")
    session, clock, kind = gpu.onnxruntime_on_cuda(exported.path, 1)
    assert kind == "host"
    assert log.providers == [(CUDA, {"use_tf32": "0"})]
    with session:
        times = clock(images, 4)
    assert len(times) == 4
    assert all(time > 0 for time in times)
    assert log.happened == ["run"] * 5
    assert log.asynchronous == ["0"] * 5


def bench(checkpoint_path: Path) -> tuple[Any, str]:
    options = BenchOptions(runtimes=("ort-cuda", "ort-cuda-portable"), batch_sizes=(2,), threads=1, rounds=2)
    report = bench_checkpoint(checkpoint_path, options)
    console = Console(width=80, record=True)
    with console.capture() as capture:
        for part in render(report):
            console.print(part)
    return report, capture.get()


@pytest.mark.usefixtures("log", "torch_with_cuda")
def test_the_row_says_events(checkpoint_path: Path) -> None:
    report, text = bench(checkpoint_path)
    assert {candidate.name: candidate.clock for candidate in report.candidates} == dict.fromkeys(
        ("cbn/ort-cuda", "bn/ort-cuda", "cbn/ort-cuda-portable"), "events"
    )
    assert all(timing.device is not None for timing in report.timings)
    rows = [line for line in text.partition("On the device alone")[2].splitlines() if "ort-cuda" in line]
    assert len(rows) == 3
    assert all("events" in row for row in rows)
    assert "Clock host" not in text


@pytest.mark.usefixtures("log")
def test_the_row_says_host(checkpoint_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "why_no_cuda", lambda: "PyTorch finds no NVIDIA GPU.")
    report, text = bench(checkpoint_path)
    assert {candidate.clock for candidate in report.candidates} == {"host"}
    assert all(timing.device_times_twin for timing in report.timings if timing.candidate.startswith("cbn/"))
    rows = [line for line in text.partition("On the device alone")[2].splitlines() if "ort-cuda" in line]
    assert all("host" in row for row in rows)
    assert "Clock host" in text


@pytest.mark.usefixtures("log")
def test_the_default_stream_and_a_closed_session_are_refused(exported: ExportResult, images: np.ndarray) -> None:
    with pytest.raises(ValueError, match="default stream"):
        OnnxRuntimeCudaSession(exported.path, 1, stream=0)
    session = open_session(exported.path, "onnxruntime-cuda", 1)
    session.close()
    with pytest.raises(InputError, match="closed"):
        session.run_on_device(images, wait=True)  # type: ignore[attr-defined]  # a Session of CUDA
