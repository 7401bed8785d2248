"""Give compiled CUDA kernels of the layer to ``libcbn``, for onnxruntime's CUDA provider. Imports no torch, no Triton.

A kernel is two files, ``NAME.ptx`` and ``NAME.json``, its launch contract (docs/gpu.md).
:mod:`cbn_deploy.kernels.triton.model_kernels` writes those that a model needs.
"""

from __future__ import annotations

import ctypes
import json
from pathlib import Path
from typing import Any

from cbn_deploy.errors import SettingsError
from cbn_deploy.native_interface import CudaKernel
from cbn_deploy.native_library import BFLOAT16, FLOAT16, FLOAT32, NativeLibrary

__all__ = ["register_folder", "register_kernel"]

_TYPES = {"float32": FLOAT32, "float16": FLOAT16, "bfloat16": BFLOAT16}
# The order in which the library passes parameters; a kernel without residual or posterior leaves those out.
_PARAMETERS = ("x", "residual", "tables", "pixel_count", "channels", "pixels", "y", "posterior")


def register_kernel(library: NativeLibrary, contract: str, ptx: str) -> None:
    """Make a kernel known to the op's nodes that onnxruntime creates from now on; replaces one for the same use.

    Args:
        library: from :func:`cbn_deploy.native_library.native_library`.
        contract: JSON of :class:`cbn_deploy.kernels.triton.contract.LaunchContract`.
        ptx: the code.

    Raises:
        ValueError: not such a contract, or one that this version cannot launch.
    """
    kernel = _kernel(contract, ptx)
    message: bytes | None = library.functions.cbn_cuda_register_kernel(ctypes.byref(kernel))
    if message is not None:
        raise ValueError(message.decode())


def register_folder(library: NativeLibrary, folder: Path) -> None:
    """Register every kernel of a folder, as :func:`register_kernel` does.

    Raises:
        SettingsError: no such folder, no kernel in it, or one that cannot be used.
    """
    contracts = sorted(folder.glob("*.json"))
    if not contracts:
        raise SettingsError(
            f"CBN_CUDA_KERNELS={folder} has no compiled kernels; write them with: "
            "python -m cbn_deploy.kernels.triton.model_kernels model.onnx FOLDER"
        )
    for path in contracts:
        try:
            register_kernel(library, path.read_text("utf-8"), path.with_suffix(".ptx").read_text("utf-8"))
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise SettingsError(
                f"{path} is no kernel for this version ({reason}); compile the kernels again."
            ) from error


def _kernel(contract: str, ptx: str) -> CudaKernel:
    values: dict[str, Any] = json.loads(contract)
    try:
        spec = values["spec"]
        launch = spec["launch"]
        left_out = {name for name in ("residual", "posterior") if not spec[name]}
        expected = [name for name in _PARAMETERS if name not in left_out]
        if spec["channels_last"]:
            raise ValueError("its tensors are channels last, onnxruntime's are not")
        if [parameter["name"] for parameter in values["parameters"]] != expected:
            raise ValueError("its parameters are not those of this version")
        return CudaKernel(
            type=_TYPES[spec["dtype"]],
            residual=spec["residual"],
            relu=spec["relu"],
            posterior=spec["posterior"],
            full=launch["full"],
            components=spec["components"],
            most_channels=values["most_channels"],
            vector=launch["vector"],
            block_pixels=launch["block_pixels"],
            threads=values["threads"],
            shared_bytes=values["shared_bytes"],
            entry=values["entry"].encode(),
            ptx=ptx.encode(),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"it is not a launch contract: {error}") from error
