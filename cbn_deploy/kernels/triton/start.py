"""Starting a kernel on a tensor's own device."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor
from triton.runtime.jit import KernelInterface

__all__ = ["MOST_PIXELS", "start"]

# Pixels are numbered in int32; the counter of a looping kernel ends one round (LOOPING_PROGRAMS blocks) past the last.
MOST_PIXELS = 2**31 - 2**19


def start(
    kernel: KernelInterface, grid: tuple[int, ...], x: Tensor, *others: object, warps: int, **constants: object
) -> None:
    """Launch ``kernel(x, *others)`` on the device of ``x``: left alone, Triton takes the current one.

    Args:
        kernel: a Triton kernel.
        grid: programs.
        x: first argument.
        *others: the rest.
        warps: warps a program.
        **constants: compile-time constants.
    """
    with torch.cuda.device(x.device) if x.is_cuda else nullcontext():
        # Fused multiply-adds are wanted; which default a release of Triton has changes.
        kernel[grid](x, *others, **constants, num_warps=warps, enable_fp_fusion=True)
