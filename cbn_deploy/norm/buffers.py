"""The mixture layers bind their buffers to new tensors in every pass; where addresses matter, this undoes it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["buffers_in_place"]


@contextmanager
def buffers_in_place(model: nn.Module) -> Iterator[None]:
    """Buffers that the block binds to new tensors get those tensors' values where they were, at its end."""
    before = [
        (module, name, buffer) for module in model.modules() for name, buffer in module.named_buffers(recurse=False)
    ]
    yield
    moved = [(module, name, old) for module, name, old in before if getattr(module, name) is not old]
    by_type: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
    for module, name, old in moved:
        olds, news = by_type.setdefault(old.dtype, ([], []))
        olds.append(old)
        news.append(getattr(module, name).detach())
        setattr(module, name, old)
    for olds, news in by_type.values():
        torch._foreach_copy_(olds, news)
