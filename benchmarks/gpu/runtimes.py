"""onnxruntime on CUDA and TensorRT, where they are installed. What they need is imported when a section begins."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.gpu.networks import NETWORKS, TINY, Network, pair, parity_row
from benchmarks.gpu.results import Clock, Section, SkippedError
from benchmarks.gpu.timing import medians
from cbn_deploy.cuda_kernels import register_kernel
from cbn_deploy.errors import CbnError
from cbn_deploy.native_library import NativeLibrary, native_library
from cbn_deploy.norm import freeze
from cbn_deploy.runtime.description import ModelDescription, Preprocessing

if TYPE_CHECKING:
    from cbn_deploy.runtime.tensorrt_session import TensorRtSession

# Relative to an image's largest logit. Two float32 computations of a network differ by some 1e-4; a wrong table or
# stride by 1e-1 and more.
LOGITS_LIMIT = 2e-3


def onnxruntime_cuda(section: Section, clock: Clock, device: str, *, tiny: bool) -> None:
    """The exported network with our op, with the op's body, and its twin; inputs and outputs on the GPU.

    Parity first: the op's kernels against the body on the CPU.
    """
    try:
        import onnxruntime

        from export.to_onnx import to_onnx
    except ModuleNotFoundError as error:
        raise SkippedError(f"{error.name} is not installed") from error
    if device != "cuda" or "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise SkippedError("this onnxruntime has no CUDA; pip install onnxruntime-gpu")
    for network in TINY if tiny else NETWORKS:
        models = pair(network, "cpu")
        models["cbn"] = freeze(models["cbn"])
        example = torch.randn(1, 3, network.size, network.size)
        files = {name: to_onnx(model, example).SerializeToString() for name, model in models.items()}
        sessions = {"portable": _session(files["cbn"], None), "bn": _session(files["bn"], None)}
        library = _library_with_kernels(files["cbn"])
        if library is not None:
            sessions["cbn"] = _session(files["cbn"], library)
            section.rows.append(_parity_row(network, files["cbn"], sessions["cbn"]))
        for batch in network.batches:
            if clock.over():
                return
            images = torch.randn(batch, 3, network.size, network.size, device="cuda")
            torch.cuda.synchronize()  # onnxruntime reads them in a stream of its own
            works = {name: _work(session, images) for name, session in sessions.items()}
            times = medians(works, clock, rounds=9, least_ms=5.0)
            row: dict[str, object] = {"network": network.name, "batch": batch, "fused": library is not None}
            row |= {f"{name} ms": time for name, time in times.items()}
            section.rows.append(row | {"ratio": times.get("cbn", times["portable"]) / times["bn"]})


def _library_with_kernels(content: bytes) -> NativeLibrary | None:
    """``None``: libcbn was not built here, which leaves the op's body."""
    from cbn_deploy.kernels.triton.model_kernels import compile_for_model

    library = native_library()
    if library is not None:
        for kernel in compile_for_model(content):
            register_kernel(library, kernel.contract.to_json(), kernel.ptx)
    return library


def _session(content: bytes, library: NativeLibrary | None) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if library is not None:
        options.register_custom_ops_library(str(library.path))
    providers = [("CUDAExecutionProvider", {"use_tf32": "0"}), "CPUExecutionProvider"]
    return onnxruntime.InferenceSession(content, options, providers=providers)


def _parity_row(network: Network, content: bytes, fused: Any) -> dict[str, object]:
    import onnxruntime

    on_cpu = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    images = np.random.default_rng(0).normal(size=(5, 3, network.size, network.size)).astype(np.float32)
    expected, found = (session.run(["logits"], {"images": images})[0] for session in (on_cpu, fused))
    error = float((np.abs(found - expected).max(1) / np.abs(expected).max(1)).max())
    return {"network": network.name, "logits' error": error, "ok": error <= LOGITS_LIMIT}


def _work(session: Any, images: Tensor) -> Callable[[], None]:
    binding = session.io_binding()
    binding.bind_input("images", "cuda", 0, np.float32, tuple(images.shape), images.data_ptr())
    binding.bind_output("logits", "cuda")
    return lambda: session.run_with_iobinding(binding)


def tensorrt(section: Section, clock: Clock, device: str, *, tiny: bool) -> None:
    """Engines with the plugin and with the op's body, and of the twin: logits against float64, then the device's times.

    float32 without TF32, built for batches up to the largest that is timed.
    """
    _check_tensorrt(device)
    for network in TINY if tiny else NETWORKS:
        models = pair(network, "cpu")
        frozen = freeze(models["cbn"])
        largest = max(network.batches)
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            sessions = {}
            for name, model in {"cbn": frozen, "bn": models["bn"], "portable": frozen}.items():
                if clock.over():
                    break
                session = _engine(network, model, Path(folder) / f"{name}.onnx", largest, flat=name == "portable")
                sessions[name] = stack.enter_context(session)
                found = parity_row(network, model, lambda images, session=session: _logits(session, images))
                section.rows.append({**found, "engine": name, "kernels": session.describe().kernel_path})
            for batch in network.batches:
                if "bn" in sessions:
                    section.rows.append(_engine_times(network, sessions, batch))


def _check_tensorrt(device: str) -> None:
    if device != "cuda":
        raise SkippedError("TensorRT needs a GPU")
    try:
        from export.tensorrt import EngineOptions
        from export.tensorrt.full import check_full

        check_full(EngineOptions(runtime="tensorrt"))
    except ModuleNotFoundError as error:
        raise SkippedError(f"{error.name} is not installed") from error
    except CbnError as error:
        raise SkippedError(str(error)) from error


def _engine(network: Network, model: nn.Module, path: Path, largest: int, *, flat: bool) -> TensorRtSession:
    import onnx

    from cbn_deploy.runtime.tensorrt_session import TensorRtSession
    from export.tensorrt import EngineOptions, build_engine
    from export.to_onnx import to_onnx

    proto = to_onnx(model, torch.zeros(1, 3, network.size, network.size), inline_functions=flat)
    onnx.helper.set_model_props(proto, _description(network, model).to_metadata())
    path.write_bytes(proto.SerializeToString())
    engine = path.with_suffix(".engine")
    build_engine(path, engine, EngineOptions(runtime="tensorrt", batch_sizes=(1, largest, largest)))
    return TensorRtSession(engine)


def _description(network: Network, model: nn.Module) -> ModelDescription:
    components = [len(value) for name, value in model.named_buffers() if name.endswith(".tau")]
    return ModelDescription(
        class_names=tuple(str(label) for label in range(network.classes)),
        class_counts=(1,) * network.classes,
        preprocessing=Preprocessing(height=network.size, width=network.size),
        architecture=network.name,
        components=max(components, default=0),
        training_prior=(1.0 / network.classes,) * network.classes,
    )


def _logits(session: TensorRtSession, images: Tensor) -> Tensor:
    return torch.from_numpy(session.run(images.numpy()).logits)


def _engine_times(network: Network, sessions: dict[str, TensorRtSession], batch: int) -> dict[str, object]:
    """Medians over rounds in which every engine has its turn."""
    images = np.random.default_rng(0).normal(size=(batch, 3, network.size, network.size)).astype(np.float32)
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for session in sessions.values():
        session.device_milliseconds(images, 5)
    for _ in range(9):
        for name, session in sessions.items():
            times[name].append(statistics.median(session.device_milliseconds(images, 10)))
    found = {name: statistics.median(values) for name, values in times.items()}
    row: dict[str, object] = {"network": network.name, "batch": batch}
    row |= {f"{name} ms": time for name, time in found.items()}
    return row | {f"{name} ratio": time / found["bn"] for name, time in found.items() if name != "bn"}
