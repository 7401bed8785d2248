"""Run the native library on numpy arrays, through its C interface."""

from __future__ import annotations

import itertools
import math
import platform
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from cbn_deploy.native_library import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    UINT8,
    NativeLayer,
    NativeLibrary,
    Quantum,
    native_library,
)
from export.op import TABLES, OpForm
from tests.export.op_cases import Case

INSTRUCTION_SETS = ("baseline", "avx2", "avx512") if platform.machine() in {"x86_64", "AMD64"} else ("baseline",)
NUMPY_TYPES = {FLOAT32: np.float32, FLOAT16: np.float16, BFLOAT16: ml_dtypes.bfloat16}


def library() -> NativeLibrary:
    """The library, or the test is skipped."""
    found = native_library()
    if found is None:
        pytest.skip("the native library was not built")
    return found


def native_layer(case: Case, instruction_set: str | None = None) -> NativeLayer:
    """The case's tables inside the library; skips what this processor cannot run."""
    tables = [np.ascontiguousarray(case.tables[name]) for name in TABLES]
    components, channels = case.tables["mean"].shape
    addresses = tuple(table.ctypes.data for table in tables)
    assert len(addresses) == 5
    try:
        return NativeLayer(
            library(), components, channels, addresses, case.epsilon, case.density_scale, instruction_set
        )
    except ValueError as error:
        if instruction_set is not None and "cannot run here" in str(error):
            pytest.skip(f"this processor has no {instruction_set}")
        raise


def run_native(
    case: Case,
    form: OpForm,
    *,
    instruction_set: str | None = None,
    data_type: int = FLOAT32,
    cuts: Sequence[int] = (),
    in_place: bool = False,
    block: int = 0,
) -> list[NDArray[np.float32]]:
    """Y and posterior in float32; ``cuts`` split the pixels into ranges that are computed one after the other.

    With ``block`` the kernels work on tensors in blocks of that many channels.
    """
    stored = NUMPY_TYPES[data_type]
    with np.errstate(invalid="ignore"):  # signalling NaN
        x, residual = case.x.astype(stored), case.residual.astype(stored)
    if block:
        x, residual = to_blocks(x, block), to_blocks(residual, block)
    y = x if in_place else np.full_like(x, 7.0)
    images, spatial = case.x.shape[0], case.x.shape[2:]
    pixels = math.prod(spatial)
    posterior = np.full((images, len(case.tables["tau"]), *spatial), 7.0, np.float32)
    edges = [0, *sorted(cuts), images * pixels]
    with native_layer(case, instruction_set) as layer:
        for begin, end in itertools.pairwise(edges):
            layer.forward(
                data_type,
                images,
                pixels,
                x.ctypes.data,
                y.ctypes.data,
                residual=residual.ctypes.data if form.residual else None,
                posterior=posterior.ctypes.data,
                relu=form.relu,
                begin=begin,
                end=end,
                block=block,
            )
    if block:
        y = from_blocks(y, block, case.x.shape)
    return [y.astype(np.float32), posterior]


def run_native_uint8(
    case: Case,
    form: OpForm,
    quanta: tuple[Quantum, Quantum, Quantum],
    *,
    instruction_set: str,
    cuts: Sequence[int] = (),
    in_place: bool = False,
) -> NDArray[np.uint8]:
    """Y (B, D, *spatial) as 8-bit numbers; ``case.x`` and ``case.residual`` are numbers that the quanta can say."""
    x, residual = (
        np.ascontiguousarray(np.moveaxis(np.rint(values / np.float32(quantum.scale)) + quantum.zero, 1, -1), np.uint8)
        for values, quantum in zip((case.x, case.residual), quanta[:2], strict=True)
    )
    y = x if in_place else np.full_like(x, 7)
    images, pixels = case.x.shape[0], math.prod(case.x.shape[2:])
    with native_layer(case, instruction_set) as layer:
        for begin, end in itertools.pairwise([0, *sorted(cuts), images * pixels]):
            layer.forward(
                UINT8,
                images,
                pixels,
                x.ctypes.data,
                y.ctypes.data,
                residual=residual.ctypes.data if form.residual else None,
                relu=form.relu,
                begin=begin,
                end=end,
                quanta=quanta,
            )
    return np.moveaxis(y, -1, 1)


def to_blocks(values: NDArray[Any], block: int) -> NDArray[Any]:
    """(B, D, *spatial) as (B, ceil(D / block), P, block), filled up with zeros."""
    images, channels = values.shape[:2]
    planar = np.zeros((images, -(-channels // block) * block, math.prod(values.shape[2:])), values.dtype)
    planar[:, :channels] = values.reshape(images, channels, -1)
    return np.ascontiguousarray(planar.reshape(images, -1, block, planar.shape[2]).transpose(0, 1, 3, 2))


def from_blocks(values: NDArray[Any], block: int, shape: tuple[int, ...]) -> NDArray[Any]:
    """What :func:`to_blocks` made of an array of this shape; what fills it up must be zero, or NaN beside NaN."""
    planar = values.transpose(0, 1, 3, 2).reshape(shape[0], -1, values.shape[2])
    assert not np.where(np.isnan(planar[:, :1]), 0.0, planar[:, shape[1] :]).any()
    return np.ascontiguousarray(planar[:, : shape[1]]).reshape(shape)
