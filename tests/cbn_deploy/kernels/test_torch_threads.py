"""torch's threads, lent to native code."""

from __future__ import annotations

import ctypes

import pytest
import torch

from cbn_deploy.kernels.torch_threads import lender

BODY = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def test_torch_lends_its_threads() -> None:
    """Where torch runs on OpenMP, its runtime calls a C function in as many threads as it is told."""
    if "ATen parallel backend: OpenMP" not in torch.__config__.parallel_info():
        pytest.skip("this torch has no OpenMP threads to lend")
    address = lender()
    assert address is not None
    seen: list[int] = []
    lend = ctypes.CFUNCTYPE(None, BODY, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)(address)
    lend(BODY(lambda _: seen.append(1)), None, 2, 0)
    assert len(seen) == 2
