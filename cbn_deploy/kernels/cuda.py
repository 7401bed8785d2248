"""The layer on CUDA tensors: in Triton where it is installed, else, and for what it does not take, portable."""

from __future__ import annotations

import functools
import math
import warnings
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from cbn_deploy.kernels import portable
from cbn_deploy.kernels.memory_format import empty_like_dense
from cbn_deploy.kernels.triton.launch import MAX_COMPONENTS
from cbn_deploy.kernels.triton.split_launch import LARGEST_IMAGE

__all__ = ["STORED_TYPES", "compound_batch_norm", "split_passes", "takes_tables", "training_passes", "training_tables"]

STORED_TYPES = (torch.float32, torch.float16, torch.bfloat16)


def compound_batch_norm(
    x: Tensor,
    tau: Tensor,
    mean: Tensor,
    var: Tensor,
    scale: Tensor,
    bias: Tensor,
    eps: float,
    density_scale: float,
    *,
    with_posterior: bool,
) -> tuple[Tensor, Tensor | None]:
    """As :func:`cbn_deploy.kernels.portable.compound_batch_norm`; y has ``x``'s memory format.

    The posterior is ``None`` unless asked for. float64 and more than 16 components take the portable path.
    """
    arguments = (x, tau, mean, var, scale, bias, eps, density_scale)
    suits = x.dtype in STORED_TYPES and len(tau) <= MAX_COMPONENTS
    modules = _triton_modules() if suits else None
    if modules is None:
        y, posterior = portable.outside_autocast(*arguments)
        return empty_like_dense(x).copy_(y), posterior
    found: tuple[Tensor, Tensor | None] = modules.operator.compound_batch_norm(
        *arguments, with_posterior=with_posterior
    )
    return found


def training_passes(x: Tensor, components: int) -> ModuleType | None:
    """The passes of a training step for such a tensor (B, D, *spatial), or ``None`` where they have to be portable."""
    if x.device.type != "cuda" or x.dtype not in STORED_TYPES or components > MAX_COMPONENTS:
        return None
    modules = _triton_modules()
    return None if modules is None else modules.training


def training_tables() -> ModuleType | None:
    """The steps of a training batch whose tables have kernels of their own, where :func:`training_passes` are Triton's.

    ``None`` where Triton is not installed.
    """
    modules = _triton_modules()
    return None if modules is None else modules.training_tables


def takes_tables(*tables: Tensor) -> bool:
    """Whether the kernels of :func:`training_tables` take such tables (M,) and (M, D), if there are any kernels."""
    return all(t.device.type == "cuda" and t.dtype == torch.float32 and len(t) <= MAX_COMPONENTS for t in tables)


def split_passes(x: Tensor, components: int = 1) -> ModuleType | None:
    """The split path's passes for such a tensor (B, D, *spatial), or ``None`` where they have to be portable."""
    if training_passes(x, components) is None or math.prod(x.shape[1:]) > LARGEST_IMAGE:
        return None
    modules = _triton_modules()
    return None if modules is None else modules.split


class _Modules(NamedTuple):
    operator: ModuleType
    training: ModuleType
    training_tables: ModuleType
    split: ModuleType


@functools.cache
def _triton_modules() -> _Modules | None:
    """``None``, with one warning, where Triton is not installed."""
    try:
        from cbn_deploy.kernels.triton import operator, split, training, training_tables
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != "triton":
            raise
        warnings.warn(
            "Triton is not installed, so the layer runs in plain torch operations on the GPU, which is slower; "
            "pip install triton",
            stacklevel=2,
        )
        return None
    return _Modules(operator, training, training_tables, split)
