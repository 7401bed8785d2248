"""The four passes of a training step through the native library: :mod:`cbn_deploy.kernels.training_passes`, in float32.

On ``torch.get_num_threads`` of torch's own threads; what is computed does not depend on how many there are.
"""

from __future__ import annotations

import ctypes
from enum import IntEnum

import torch
from torch import Tensor

from cbn_deploy.kernels.torch_threads import lender
from cbn_deploy.kernels.training_passes import GradientTables, Sums
from cbn_deploy.native_interface import Training
from cbn_deploy.native_library import native_library

__all__ = ["MAX_COMPONENTS", "combine", "expectation", "input_gradient", "output_sums", "suits"]

# More components than this have no training kernel.
MAX_COMPONENTS = 8


class _Step(IntEnum):
    EXPECTATION = 0
    COMBINE = 1
    OUTPUT_SUMS = 2
    INPUT_GRADIENT = 3


def suits(pixels: Tensor, components: int) -> bool:
    """Whether the library is there and can: float32 on the CPU, not too many components."""
    return (
        pixels.dtype == torch.float32
        and pixels.device.type == "cpu"
        and components <= MAX_COMPONENTS
        and native_library() is not None
    )


def expectation(x: Tensor, centre: Tensor, quadratic: Tensor, linear: Tensor, constant: Tensor) -> tuple[Tensor, Sums]:
    """See :func:`cbn_deploy.kernels.training_passes.expectation`."""
    components, channels = quadratic.shape
    w = x.new_empty((x.shape[0], components, x.shape[2]))
    length = components * (1 + 2 * channels)
    sums = _run(_Step.EXPECTATION, x, w, _rows(centre, quadratic, linear), constant=constant, sums=length)
    return w, Sums(sums[:components].clone(), *_tables(components, sums[components:]))


def combine(x: Tensor, centre: Tensor, w: Tensor, gain: Tensor, offset: Tensor, out: Tensor) -> None:
    """See :func:`cbn_deploy.kernels.training_passes.combine`."""
    _run(_Step.COMBINE, x, w, _rows(centre, gain, offset), result=out)


def output_sums(grad: Tensor, x: Tensor, centre: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """See :func:`cbn_deploy.kernels.training_passes.output_sums`."""
    components, channels = w.shape[1], x.shape[1]
    sums = _run(_Step.OUTPUT_SUMS, x, w, _rows(centre), grad=grad, sums=2 * components * channels)
    return _tables(components, sums)


def input_gradient(grad: Tensor, x: Tensor, centre: Tensor, w: Tensor, tables: GradientTables) -> Tensor:
    """See :func:`cbn_deploy.kernels.training_passes.input_gradient`."""
    result = torch.empty_like(x)
    per_channel = (tables.gain, tables.offset, tables.curvature, tables.slope, tables.quadratic, tables.linear)
    _run(_Step.INPUT_GRADIENT, x, w, _rows(centre, *per_channel), constant=tables.constant, grad=grad, result=result)
    return result


def _rows(centre: Tensor, *tables: Tensor) -> Tensor:
    """One row a channel: the centre, then every table's M entries."""
    return torch.cat([centre[None], *tables]).t().contiguous()


def _tables(components: int, sums: Tensor) -> tuple[Tensor, Tensor]:
    """(2 D M,) -> two tables (M, D), in memory of their own: operators must not return views of each other."""
    first, second = (
        half.reshape(-1, components).t().clone(memory_format=torch.contiguous_format) for half in sums.chunk(2)
    )
    return first, second


def _run(
    step: _Step,
    x: Tensor,
    w: Tensor,
    table: Tensor,
    *,
    constant: Tensor | None = None,
    grad: Tensor | None = None,
    result: Tensor | None = None,
    sums: int = 0,
) -> Tensor:
    """One pass; returns the ``sums`` numbers that it adds up, none for a pass without."""
    library = native_library()
    assert library is not None  # noqa: S101 - the caller asked `suits`
    images, channels, pixels = x.shape
    parts = x.new_empty((library.functions.cbn_training_chunks(images, pixels), sums))
    tensors = (table, constant, x, grad, w, result, parts)
    addresses = (None if tensor is None else tensor.data_ptr() for tensor in tensors)
    arguments = Training(step, w.shape[1], channels, images, pixels, *addresses)
    run = library.functions.cbn_training_run
    message: bytes | None = run(ctypes.byref(arguments), None, lender(), torch.get_num_threads())
    if message is not None:
        raise ValueError(message.decode())
    # Over many chunks float32 would lose digits that the chunks' own short sums have.
    return parts.sum(0, dtype=torch.float64).float()
