"""Open a model file by name of runtime."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal, get_args

from cbn_deploy.errors import ModelFileError, RuntimeUnavailableError
from cbn_deploy.runtime.session import Session

__all__ = ["RUNTIMES", "RuntimeName", "available_cpus", "open_session"]

RuntimeName = Literal["auto", "onnxruntime", "onnxruntime-cuda", "openvino", "torch", "tensorrt"]
RUNTIMES: tuple[RuntimeName, ...] = get_args(RuntimeName)

_SUFFIXES: dict[str, RuntimeName] = {".onnx": "onnxruntime", ".pt": "torch", ".engine": "tensorrt"}
# What each runtime imports besides the core, and the extra that installs it; the TensorRT Session says itself what an
# engine needs, as that depends on what built it.
_PACKAGES: dict[RuntimeName, tuple[str, str]] = {
    "onnxruntime": ("onnxruntime", "cpu"),
    "onnxruntime-cuda": ("onnxruntime", "gpu"),
    "openvino": ("openvino", "openvino"),
    "torch": ("torch", "train"),
}


def open_session(
    path: Path | str,
    runtime: RuntimeName = "auto",
    threads: int | None = None,
    *,
    with_posteriors: bool = False,
    spin: bool = True,
) -> Session:
    """Load a model file into a :class:`Session`.

    Args:
        path: ``model.onnx`` (runtimes "onnxruntime", "onnxruntime-cuda" and "openvino"), ``model.pt`` (runtime "torch")
            or ``model.engine`` (runtime "tensorrt", also for an engine of TensorRT-RTX).
        runtime: "auto" picks by the file's suffix: ``.onnx`` onnxruntime, ``.pt`` torch, ``.engine`` tensorrt.
        threads: threads that share one run. ``None``: :func:`available_cpus` of them; for torch, whose thread count is
            one setting of the whole process, torch's own setting is left alone.
        with_posteriors: also return the posteriors of a ``.pt``'s mixture layers. Of an exported file, whose outputs
            are what they are, this changes nothing.
        spin: of onnxruntime on the CPU, whether its threads wait busily for each other: right for one run after
            another, wrong for a server, whose event loop and decoding need the CPUs meanwhile.

    Raises:
        ModelFileError: the file is missing, damaged, does not describe itself or has the wrong inputs or outputs.
        CheckpointError: the same of a ``.pt`` file.
        RuntimeUnavailableError: the runtime's package is not installed, or the GPU that it needs is absent.
        ValueError: an unknown runtime, or threads < 1.
    """
    path = Path(path)
    if runtime not in RUNTIMES:
        raise ValueError(f"runtime must be one of {', '.join(RUNTIMES)}, got {runtime!r}")
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    chosen = _by_suffix(path) if runtime == "auto" else runtime
    opener = _opener(chosen, with_posteriors, spin)
    return opener(path, threads)


def available_cpus() -> int:
    """CPUs that this process may use: its affinity mask, and the quota of its control group (containers)."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return min(affinity, max(1, round(int(quota) / int(period))))
    except (OSError, ValueError):  # no such file, or "max": no quota
        return affinity


def _by_suffix(path: Path) -> RuntimeName:
    try:
        return _SUFFIXES[path.suffix.lower()]
    except KeyError:
        if path.is_dir():
            raise ModelFileError(
                f"{path} is a folder; give the path of the .onnx, .pt or .engine file in it."
            ) from None
        raise ModelFileError(
            f"{path} is neither a .onnx nor a .pt nor a .engine file; name the runtime that should read it."
        ) from None


def _opener(runtime: RuntimeName, with_posteriors: bool, spin: bool) -> Callable[[Path, int | None], Session]:
    try:
        if runtime == "onnxruntime":
            from cbn_deploy.runtime.onnxruntime_session import OnnxRuntimeSession

            return partial(OnnxRuntimeSession, spin=spin)
        if runtime == "onnxruntime-cuda":
            from cbn_deploy.runtime.onnxruntime_cuda_session import OnnxRuntimeCudaSession

            return OnnxRuntimeCudaSession
        if runtime == "openvino":
            from cbn_deploy.runtime.openvino_session import OpenVinoSession

            return OpenVinoSession
        if runtime == "tensorrt":
            from cbn_deploy.runtime.tensorrt_session import TensorRtSession

            return TensorRtSession
        from cbn_deploy.runtime.torch_session import TorchSession

        return partial(TorchSession, with_posteriors=with_posteriors)
    except ModuleNotFoundError as error:
        package, extra = _PACKAGES[runtime]
        if error.name is None or error.name.split(".")[0] != package:
            raise  # a bug of ours or a broken installation: do not blame a missing package
        raise RuntimeUnavailableError(
            f"The {runtime} runtime is not installed; install it with: pip install 'cbn-deploy[{extra}]'."
        ) from error
