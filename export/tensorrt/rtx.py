"""TensorRT-RTX: engines for RTX GPUs, built ahead of time on any x86-64 machine, also one without a GPU.

There are no plugins: the op's standard-ops body is what runs.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from cbn_deploy.errors import EngineError, RuntimeUnavailableError
from cbn_deploy.runtime.onnx_file import OnnxFile
from export.tensorrt.network import build, product
from export.tensorrt.options import RTX_COMPUTE_CAPABILITIES, Build, EngineOptions
from export.tensorrt.progress import BuildProgress

__all__ = ["build_rtx", "check_rtx", "load_tensorrt_rtx"]

_PACKAGES = "tensorrt-rtx-cu13-libs tensorrt-rtx-cu13-bindings"


def load_tensorrt_rtx() -> ModuleType:
    """The package.

    Raises:
        RuntimeUnavailableError: it is not installed, or its libraries do not load.
    """
    try:
        return importlib.import_module("tensorrt_rtx_bindings")
    except ImportError as error:
        raise RuntimeUnavailableError(
            f"TensorRT-RTX is not installed ({error}); install it with: pip install --no-deps {_PACKAGES}."
        ) from error


def check_rtx(options: EngineOptions) -> None:
    """Raise what :func:`build_rtx` would raise about this machine and the compute capabilities."""
    _resolve(load_tensorrt_rtx(), options.compute_capabilities or RTX_COMPUTE_CAPABILITIES)


def build_rtx(file: OnnxFile, options: EngineOptions, progress: BuildProgress | None) -> Build:
    """Build one engine for all the compute capabilities asked for.

    Raises:
        RuntimeUnavailableError: the package is not installed.
        EngineError: a compute capability is not offered, or the graph cannot be built.
    """
    trt = load_tensorrt_rtx()
    targets = _resolve(trt, options.compute_capabilities or RTX_COMPUTE_CAPABILITIES)

    def configure(config: Any) -> None:
        config.num_compute_capabilities = len(targets)
        for index, (name, target) in enumerate(targets.items()):
            if not config.set_compute_capability(target, index):
                raise EngineError(f"{product(trt)} refused compute capability {name}; leave it out.")

    return Build(
        engine=build(trt, file.content, options.batch_sizes, configure, progress),
        version=trt.__version__,
        implementation="function body" if file.description.components else "none",
        compute_capabilities=tuple(targets),
    )


def _resolve(trt: ModuleType, wanted: tuple[str, ...]) -> dict[str, Any]:
    """Compute capabilities such as "8.9" -> the package's name for them."""
    named = {name: value for name, value in trt.ComputeCapability.__members__.items() if name.startswith("SM")}
    offered = {f"{name[2:-1]}.{name[-1]}": value for name, value in named.items()}
    unknown = [capability for capability in wanted if capability not in offered]
    if unknown:
        raise EngineError(
            f"{product(trt)} does not build for compute capability {', '.join(unknown)}; "
            f"choose among {', '.join(offered)}, or build with --target tensorrt on the GPU itself."
        )
    return {capability: offered[capability] for capability in wanted}
