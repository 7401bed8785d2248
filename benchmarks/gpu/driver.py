"""The ahead-of-time PTX through the CUDA driver, launched by its contract alone: what a host without Python does."""

from __future__ import annotations

import ctypes
import math

import torch
from torch import Tensor

from benchmarks.gpu.parity import EPSILON
from benchmarks.gpu.results import Clock, Section, SkippedError
from benchmarks.gpu.shapes import random_tables
from cbn_deploy.kernels.triton import operator
from cbn_deploy.kernels.triton.ahead_of_time import CompiledKernel, compile_kernel, layer_spec

TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def ahead_of_time(section: Section, clock: Clock, device: str) -> None:
    """sm_80 PTX on this GPU gives what the just-in-time kernel gives."""
    if device != "cuda":
        raise SkippedError("PTX runs on a GPU only")
    for dtype in TYPES:
        for channels, size, channels_last in ((64, 8, False), (24, 7, True), (1024, 7, False)):
            if clock.over():
                return
            section.rows.append(_row(dtype, channels, size, channels_last))


def _row(dtype: str, channels: int, size: int, channels_last: bool) -> dict[str, object]:
    x = torch.randn(5, channels, size, size, device="cuda", dtype=TYPES[dtype])
    residual = torch.randn_like(x)
    if channels_last:
        x, residual = (value.to(memory_format=torch.channels_last) for value in (x, residual))
    tables = operator.layer_tables(*random_tables(4, channels, "cuda"), EPSILON, channels**-0.5)
    expected, _ = operator.forward(x, tables, 4, residual=residual, relu=True)
    spec = layer_spec(
        dtype=dtype,
        components=4,
        channels=channels,
        pixels=size * size,
        channels_last=channels_last,
        residual=True,
        relu=True,
    )
    kernel = compile_kernel(spec)
    y = torch.full_like(x, torch.nan)
    launch(kernel, {"x": x, "residual": residual, "tables": tables, "y": y}, channels, size * size, len(x))
    error = (y.float() - expected.float()).abs().max().item()
    limit = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 2e-1}[dtype]
    return {
        "kernel": spec.name,
        "PTX": kernel.contract.ptx_version,
        "from the just-in-time kernel": error,
        "ok": math.isfinite(error) and error <= limit,
    }


def launch(kernel: CompiledKernel, tensors: dict[str, Tensor], channels: int, pixels: int, images: int) -> None:
    """Load the PTX into torch's context and launch it on torch's stream."""
    driver, contract = ctypes.CDLL("libcuda.so.1"), kernel.contract
    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    _check(driver.cuModuleLoadData(ctypes.byref(module), kernel.ptx.encode()))
    _check(driver.cuModuleGetFunction(ctypes.byref(function), module, contract.entry.encode()))
    integers = {"pixel_count": images * pixels, "channels": channels, "pixels": pixels}
    values = [
        ctypes.c_int32(integers[parameter.name])
        if parameter.type == "int32"
        else ctypes.c_uint64(tensors[parameter.name].data_ptr())
        for parameter in contract.spec.parameters
    ]
    addresses = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
    grid = contract.spec.launch.programs(images * pixels)
    stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
    _check(
        driver.cuLaunchKernel(
            function, grid, 1, 1, contract.threads, 1, 1, contract.shared_bytes, stream, addresses, None
        )
    )
    torch.cuda.synchronize()
    _check(driver.cuModuleUnload(module))


def _check(code: int) -> None:
    if code:
        raise RuntimeError(f"the CUDA driver answered with error {code}")
