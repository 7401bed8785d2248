"""``c_api.h`` for Python: the structures and functions of ``libcbn``, and the number that tells its versions apart."""

from __future__ import annotations

import ctypes

__all__ = ["ABI", "CudaKernel", "Planes", "Quantum", "Tensors", "Training", "declare"]

# CBN_ABI of the c_api.h that everything here mirrors.
ABI = 1


class Quantum(ctypes.Structure):
    """What an 8-bit number n stands for, ``scale * (n - zero)``; ``cbn_quantum``."""

    _fields_ = (("scale", ctypes.c_float), ("zero", ctypes.c_int32))


class Tensors(ctypes.Structure):
    """``cbn_tensors``."""

    _fields_ = (
        ("type", ctypes.c_int32),
        ("relu", ctypes.c_int32),
        ("images", ctypes.c_int64),
        ("pixels", ctypes.c_int64),
        ("x", ctypes.c_void_p),
        ("residual", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        ("posterior", ctypes.c_void_p),
        ("block", ctypes.c_int64),
        ("x_quantum", Quantum),
        ("residual_quantum", Quantum),
        ("y_quantum", Quantum),
    )


class Training(ctypes.Structure):
    """``cbn_training``."""

    _fields_ = (
        ("step", ctypes.c_int32),
        ("components", ctypes.c_int32),
        ("channels", ctypes.c_int64),
        ("images", ctypes.c_int64),
        ("pixels", ctypes.c_int64),
        ("table", ctypes.c_void_p),
        ("constant", ctypes.c_void_p),
        ("x", ctypes.c_void_p),
        ("grad", ctypes.c_void_p),
        ("posterior", ctypes.c_void_p),
        ("result", ctypes.c_void_p),
        ("sums", ctypes.c_void_p),
    )


class Planes(ctypes.Structure):
    """``cbn_planes``."""

    _fields_ = (
        ("step", ctypes.c_int32),
        ("planes", ctypes.c_int64),
        ("pixels", ctypes.c_int64),
        ("table", ctypes.c_void_p),
        ("x", ctypes.c_void_p),
        ("grad", ctypes.c_void_p),
        ("result", ctypes.c_void_p),
        ("sums", ctypes.c_void_p),
    )


class CudaKernel(ctypes.Structure):
    """``cbn_cuda_kernel``."""

    _fields_ = (
        ("type", ctypes.c_int32),
        ("residual", ctypes.c_int32),
        ("relu", ctypes.c_int32),
        ("posterior", ctypes.c_int32),
        ("full", ctypes.c_int32),
        ("components", ctypes.c_int32),
        ("most_channels", ctypes.c_int32),
        ("vector", ctypes.c_int32),
        ("block_pixels", ctypes.c_int32),
        ("threads", ctypes.c_int32),
        ("shared_bytes", ctypes.c_int32),
        ("entry", ctypes.c_char_p),
        ("ptx", ctypes.c_char_p),
    )


def declare(functions: ctypes.CDLL) -> None:
    """Give every function of the library its types.

    Raises:
        OSError: the library was built from another ``c_api.h``.
    """
    found = functions.cbn_abi() if hasattr(functions, "cbn_abi") else 0  # older libraries have no number
    if found != ABI:
        raise OSError(f"it was built for interface {found}, this version of the package has {ABI}; install it again")
    text, pointer, size, count = ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
    of = ctypes.POINTER
    functions.cbn_version.restype = text
    functions.cbn_version.argtypes = []
    functions.cbn_instruction_set.restype = text
    functions.cbn_instruction_set.argtypes = []
    functions.cbn_layer_create.restype = text
    functions.cbn_layer_create.argtypes = [
        *(size, size, *(pointer,) * 5, ctypes.c_float, ctypes.c_float, text, of(pointer))
    ]
    functions.cbn_layer_destroy.restype = None
    functions.cbn_layer_destroy.argtypes = [pointer]
    functions.cbn_layer_forward.restype = text
    functions.cbn_layer_forward.argtypes = [pointer, of(Tensors), size, size]
    functions.cbn_training_chunks.restype = size
    functions.cbn_training_chunks.argtypes = [size, size]
    functions.cbn_training_run.restype = text
    functions.cbn_training_run.argtypes = [of(Training), text, pointer, count]
    functions.cbn_planes_run.restype = text
    functions.cbn_planes_run.argtypes = [of(Planes), text, pointer, count]
    functions.cbn_cuda_register_kernel.restype = text
    functions.cbn_cuda_register_kernel.argtypes = [of(CudaKernel)]
