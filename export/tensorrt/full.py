"""TensorRT proper: engines built on the GPU that will run them, with our plugin inside."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
import onnx_ir as ir

from cbn_deploy.atomic import atomic_write_bytes
from cbn_deploy.errors import EngineError, RuntimeUnavailableError
from cbn_deploy.kernels.triton.launch import MAX_COMPONENTS
from cbn_deploy.runtime.cuda_memory import CudaRuntime
from cbn_deploy.runtime.engine_file import Implementation
from cbn_deploy.runtime.onnx_file import OnnxFile
from export.op import DOMAIN
from export.tensorrt.compiler import load_compiler
from export.tensorrt.network import build
from export.tensorrt.options import Build, EngineOptions
from export.tensorrt.pack_tables import PackTablesPass
from export.tensorrt.plugin import register_plugins
from export.tensorrt.progress import BuildProgress

__all__ = ["build_full", "check_full", "load_tensorrt"]

# The first version whose ONNX parser and plugin layer are those described in docs/tensorrt.md.
_OLDEST = (10, 15)


def load_tensorrt() -> ModuleType:
    """The package, with ``tensorrt.plugin``.

    Raises:
        RuntimeUnavailableError: it is not installed, its libraries do not load, or it is too old.
    """
    try:
        trt = importlib.import_module("tensorrt")
    except ImportError as error:
        raise RuntimeUnavailableError(
            f"TensorRT is not installed ({error}); install it with: pip install tensorrt-cu13 cuda-bindings."
        ) from error
    if tuple(int(part) for part in trt.__version__.split(".")[:2]) < _OLDEST:
        raise RuntimeUnavailableError(
            f"TensorRT {trt.__version__} is too old; install {'.'.join(map(str, _OLDEST))} or newer with: "
            "pip install --upgrade tensorrt-cu13."
        )
    return trt


def check_full(options: EngineOptions) -> None:
    """Raise what :func:`build_full` would raise about this machine and the options."""
    if options.compute_capabilities:
        raise EngineError(
            "TensorRT builds for the GPU that it finds; leave out --compute-capability, or use --target tensorrt-rtx."
        )
    load_tensorrt()
    CudaRuntime().close()


def build_full(file: OnnxFile, options: EngineOptions, timing_cache: Path, progress: BuildProgress | None) -> Build:
    """Build for this machine's GPU: with the plugin for the op's nodes, or an inlined file as it is.

    Args:
        file: what to build.
        options: see :class:`EngineOptions`.
        timing_cache: what earlier builds measured, if it exists; written anew, so that the next build is quick.
        progress: called with (phase, steps done, steps in all).

    Raises:
        RuntimeUnavailableError: TensorRT, Triton (for the plugin's kernels) or a GPU is absent.
        EngineError: the graph cannot be built.
    """
    trt = load_tensorrt()
    content, implementation = file.content, _portable(file)
    if DOMAIN in file.domains:
        content, implementation = _with_plugin(trt, file), "plugin"

    def load_measurements(config: Any) -> None:
        known = timing_cache.read_bytes() if timing_cache.is_file() else b""
        # A cache of another GPU or version is refused, and measuring starts from nothing.
        if not config.set_timing_cache(config.create_timing_cache(known), ignore_mismatch=False):
            config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)

    def save_measurements(config: Any) -> None:
        atomic_write_bytes(timing_cache, bytes(memoryview(config.get_timing_cache().serialize())))

    cuda = CudaRuntime()
    try:
        engine = build(trt, content, options.batch_sizes, load_measurements, progress, save_measurements)
    finally:
        cuda.close()
    return Build(
        engine=engine,
        version=trt.__version__,
        implementation=implementation,
        compute_capabilities=(cuda.compute_capability,),
    )


def _portable(file: OnnxFile) -> Implementation:
    return "function body" if file.description.components else "none"


def _with_plugin(trt: ModuleType, file: OnnxFile) -> bytes:
    """Register the plugin, and rewrite the graph for it."""
    if file.description.components > MAX_COMPONENTS:
        raise EngineError(
            f"The plugin takes up to {MAX_COMPONENTS} components, the model has {file.description.components}; build "
            "the portable form of the layers: cbn-export --inline."
        )
    register_plugins(trt, importlib.import_module("tensorrt.plugin"), load_compiler())
    graph = ir.serde.deserialize_model(onnx.load_model_from_string(file.content))
    PackTablesPass()(graph)
    packed: bytes = ir.serde.serialize_model(graph).SerializeToString()
    return packed
