"""onnxruntime on CUDA and TensorRT, where they are installed."""

from __future__ import annotations

import importlib

import numpy as np
import torch

from benchmarks.gpu.networks import NETWORKS, TINY, pair
from benchmarks.gpu.results import Clock, Section, SkippedError
from benchmarks.gpu.timing import medians
from cbn_deploy.norm import freeze


def onnxruntime_cuda(section: Section, clock: Clock, device: str, *, tiny: bool) -> None:
    """The exported network and its twin, inputs and outputs on the GPU."""
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
        sessions = {}
        for name, model in models.items():
            content = to_onnx(model, example).SerializeToString()
            sessions[name] = onnxruntime.InferenceSession(content, providers=["CUDAExecutionProvider"])
        for batch in network.batches:
            if clock.over():
                return
            images = torch.randn(batch, 3, network.size, network.size, device="cuda")
            works = {}
            for name, session in sessions.items():
                binding = session.io_binding()
                binding.bind_input("images", "cuda", 0, np.float32, tuple(images.shape), images.data_ptr())
                binding.bind_output("logits", "cuda")
                works[name] = lambda session=session, binding=binding: session.run_with_iobinding(binding)
            times = medians(works, clock, rounds=9, least_ms=5.0)
            row = {"network": network.name, "batch": batch, "cbn ms": times["cbn"], "bn ms": times["bn"]}
            section.rows.append(row | {"ratio": times["cbn"] / times["bn"]})


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
