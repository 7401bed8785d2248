"""Which classes share a Gaussian on the split path (Section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cbn_deploy.norm.config import ClassGrouping

__all__ = ["class_groups"]


def class_groups(
    num_classes: int,
    components: int,
    policy: ClassGrouping = "contiguous",
    class_counts: Sequence[int] | None = None,
) -> Tensor:
    """Group index of every class: int64 (K,), values 0..components-1, group sizes equal within one.

    Args:
        num_classes: K.
        components: M; with fewer classes than components some groups stay empty.
        policy: "contiguous" runs of serial numbers (the paper), "strided" k mod M, "frequency" contiguous runs of the
            classes sorted by descending ``class_counts``.
        class_counts: K training counts, needed for "frequency".
    """
    if num_classes < 1 or components < 1:
        raise ValueError(f"num_classes and components must be at least 1, got {num_classes} and {components}")
    serial = torch.arange(num_classes)
    if policy == "strided":
        return serial % components
    contiguous = serial * components // num_classes
    if policy == "contiguous":
        return contiguous
    if policy == "frequency":
        if class_counts is None or len(class_counts) != num_classes:
            raise ValueError("class_grouping='frequency' needs the training count of every class")
        groups = torch.empty_like(contiguous)
        groups[torch.argsort(torch.tensor(class_counts), descending=True, stable=True)] = contiguous
        return groups
    raise ValueError(f"policy must be contiguous, strided or frequency, got {policy!r}")
