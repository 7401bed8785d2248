"""The two dense memory formats that the GPU kernels know: channels first (contiguous) and channels last."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["dense", "empty_like_dense", "empty_output", "is_channels_last", "readable", "stored_like"]


def is_channels_last(x: Tensor) -> bool:
    """Whether ``x`` (B, D, *spatial) is dense with its channels contiguous, and not the other way as well."""
    return not x.is_contiguous() and x.movedim(1, -1).is_contiguous()


def dense(x: Tensor) -> Tensor:
    """``x`` itself where it is dense in one of the two formats, else a contiguous copy."""
    return x if is_channels_last(x) else x.contiguous()


def empty_like_dense(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """An uninitialised tensor of the shape, device and (by default) type of ``x``, in the format of ``dense(x)``."""
    if is_channels_last(x):
        return torch.empty_like(x, dtype=dtype)
    return torch.empty(x.shape, dtype=dtype or x.dtype, device=x.device)


def empty_output(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """As :func:`empty_like_dense` on CUDA; contiguous elsewhere, where no kernel knows channels last."""
    if x.device.type == "cuda":
        return empty_like_dense(x, dtype)
    return torch.empty(x.shape, dtype=dtype or x.dtype, device=x.device)


def readable(x: Tensor) -> Tensor:
    """``x`` as the training operators read it without copying it again."""
    return dense(x) if x.device.type == "cuda" else x.contiguous()


def stored_like(x: Tensor, values: Tensor) -> Tensor:
    """``values``, shaped like ``x``, in the type of ``x`` and the format of ``dense(x)``; copied only if need be."""
    values = values.to(x.dtype)
    if not is_channels_last(x):
        return values.contiguous()
    return values if is_channels_last(values) else torch.empty_like(x).copy_(values)
