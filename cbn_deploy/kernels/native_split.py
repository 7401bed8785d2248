"""The split path's passes through the native library: :mod:`cbn_deploy.kernels.split_passes`, in float32."""

from __future__ import annotations

import ctypes
from enum import IntEnum

import torch
from torch import Tensor

from cbn_deploy.kernels.torch_threads import lender
from cbn_deploy.native_interface import Planes
from cbn_deploy.native_library import native_library

__all__ = ["affine", "gradient_sums", "moments", "suits"]


class _Step(IntEnum):
    MOMENTS = 0
    GRADIENT_SUMS = 1
    AFFINE = 2


def suits(planes: Tensor) -> bool:
    """Whether the library is there and can: float32 on the CPU."""
    return planes.dtype == torch.float32 and planes.device.type == "cpu" and native_library() is not None


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """See :func:`cbn_deploy.kernels.split_passes.moments`."""
    return _sums(_Step.MOMENTS, x)


def gradient_sums(grad: Tensor, x: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    """See :func:`cbn_deploy.kernels.split_passes.gradient_sums`."""
    return _sums(_Step.GRADIENT_SUMS, x, table=_table(centre), grad=grad)


def affine(
    x: Tensor, centre: Tensor, slope: Tensor, offset: Tensor, out: Tensor, grad: Tensor | None, gain: Tensor | None
) -> None:
    """See :func:`cbn_deploy.kernels.split_passes.affine`."""
    table = _table(centre, slope, offset, *(() if gain is None else (gain,)))
    _run(_Step.AFFINE, x, table=table, grad=grad, result=out)


def _table(*columns: Tensor) -> Tensor:
    """(B D, 4), the columns that are not given repeat the first."""
    return torch.stack([*columns, *[columns[0]] * (4 - len(columns))], dim=1)


def _sums(step: _Step, x: Tensor, table: Tensor | None = None, grad: Tensor | None = None) -> tuple[Tensor, Tensor]:
    sums = x.new_empty((len(x), 2))
    _run(step, x, table=table, grad=grad, sums=sums)
    return sums[:, 0].clone(), sums[:, 1].clone()


def _run(
    step: _Step,
    x: Tensor,
    *,
    table: Tensor | None = None,
    grad: Tensor | None = None,
    result: Tensor | None = None,
    sums: Tensor | None = None,
) -> None:
    library = native_library()
    assert library is not None  # noqa: S101 - the caller asked `suits`
    tensors = (table, x, grad, result, sums)
    addresses = (None if tensor is None else tensor.data_ptr() for tensor in tensors)
    arguments = Planes(step, *x.shape, *addresses)
    run = library.functions.cbn_planes_run
    message: bytes | None = run(ctypes.byref(arguments), None, lender(), torch.get_num_threads())
    if message is not None:
        raise ValueError(message.decode())
