"""``torch.ops.cbn.all_reduced``: a sum over the ranks of ``torch.distributed``, as one operator that compilers keep."""

from __future__ import annotations

import torch
from torch import Tensor, distributed

__all__ = ["all_reduced"]


@torch.library.custom_op("cbn::all_reduced", mutates_args=())
def all_reduced(values: Tensor) -> Tensor:
    """Sum of ``values`` over all ranks of the default process group, bit for bit the same on each; no gradient.

    Every rank has to call it, in the same order and with tensors of the same shape.

    Raises:
        ValueError: there is no process group.
    """
    total = values.detach().clone(memory_format=torch.contiguous_format)
    distributed.all_reduce(total)
    return total


@all_reduced.register_fake
def _(values: Tensor) -> Tensor:
    return torch.empty_like(values, memory_format=torch.contiguous_format)
