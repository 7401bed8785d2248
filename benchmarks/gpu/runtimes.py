"""onnxruntime on CUDA and TensorRT, where they are installed."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu.networks import NETWORKS, TINY, Network, pair
from benchmarks.gpu.results import Clock, Section, SkippedError
from benchmarks.gpu.timing import medians
from cbn_deploy.cuda_kernels import register_kernel
from cbn_deploy.kernels.triton.model_kernels import compile_for_model
from cbn_deploy.native_library import NativeLibrary, native_library
from cbn_deploy.norm import freeze

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
            works = {name: _work(session, images) for name, session in sessions.items()}
            times = medians(works, clock, rounds=9, least_ms=5.0)
            row: dict[str, object] = {"network": network.name, "batch": batch, "fused": library is not None}
            row |= {f"{name} ms": time for name, time in times.items()}
            section.rows.append(row | {"ratio": times.get("cbn", times["portable"]) / times["bn"]})


def _library_with_kernels(content: bytes) -> NativeLibrary | None:
    """``None``: libcbn was not built here, which leaves the op's body."""
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


def tensorrt(section: Section, clock: Clock, device: str) -> None:
    """Says whether engines can be built here; cbn-bench times them."""
    del clock
    try:
        trt = importlib.import_module("tensorrt")
    except ImportError as error:
        raise SkippedError("tensorrt is not installed") from error
    if device != "cuda":
        raise SkippedError("TensorRT needs a GPU")
    section.rows.append({"tensorrt": trt.__version__, "next": "cbn-export --target tensorrt, then cbn-bench"})
