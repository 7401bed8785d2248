"""torch's own threads, for the native library: a second pool beside them would fight them for the cores."""

from __future__ import annotations

import ctypes
import functools
import sys
from pathlib import Path

import torch

__all__ = ["lender"]


@functools.cache
def lender() -> int | None:
    """Address of ``GOMP_parallel`` in the OpenMP runtime that torch is linked with, the C function that lends them.

    ``None`` where there is none: native code then runs in the calling thread.
    """
    if not sys.platform.startswith("linux"):
        return None
    try:
        torch_library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        return ctypes.cast(torch_library.GOMP_parallel, ctypes.c_void_p).value
    except (OSError, AttributeError):
        return None
