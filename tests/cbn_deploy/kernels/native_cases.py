"""Run the native library on numpy arrays, through its C interface."""

from __future__ import annotations

import itertools
import math
import platform
from collections.abc import Sequence

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from cbn_deploy.native_library import BFLOAT16, FLOAT16, FLOAT32, NativeLayer, NativeLibrary, native_library
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
) -> list[NDArray[np.float32]]:
    """Y and posterior in float32; ``cuts`` split the pixels into ranges that are computed one after the other."""
    stored = NUMPY_TYPES[data_type]
    with np.errstate(invalid="ignore"):  # signalling NaN
        x, residual = case.x.astype(stored), case.residual.astype(stored)
    y = x if in_place else np.full_like(x, 7.0)
    images, spatial = x.shape[0], x.shape[2:]
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
            )
    return [y.astype(np.float32), posterior]
