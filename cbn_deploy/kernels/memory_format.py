"""The two dense memory formats that the GPU kernels know: channels first (contiguous) and channels last."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["dense", "empty_like_dense", "is_channels_last"]


def is_channels_last(x: Tensor) -> bool:
    """Whether ``x`` (B, D, *spatial) is dense with its channels contiguous, and not the other way as well."""
    return not x.is_contiguous() and x.movedim(1, -1).is_contiguous()


def dense(x: Tensor) -> Tensor:
    """``x`` itself where it is dense in one of the two formats, else a contiguous copy."""
    return x if is_channels_last(x) else x.contiguous()


def empty_like_dense(x: Tensor) -> Tensor:
    """An uninitialised tensor of the shape, type and device of ``x``, in the format of ``dense(x)``."""
    if is_channels_last(x):
        return torch.empty_like(x)
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)
