"""Running means of one epoch, weighted by images."""

from __future__ import annotations

import torch
from torch import Tensor

from cbn_deploy.training.ranks import Ranks
from cbn_deploy.training.step import StepLosses

__all__ = ["EpochAverages"]


class EpochAverages:
    """Add every step, read the means at any time (after the first step)."""

    def __init__(self, ranks: Ranks | None = None) -> None:
        self.images = 0
        self._correct = 0
        self._sums: dict[str, float] = {}
        self._ranks = ranks or Ranks()

    def add(self, losses: StepLosses, labels: Tensor) -> None:
        """Count B images on this rank, with those of the others; B may be 0."""
        parts = {
            "total": losses.total,
            "classification": losses.classification,
            "split": losses.split,
            "consistency": losses.consistency,
        }
        used = {name: value for name, value in parts.items() if value is not None}
        correct = (losses.logits.detach().argmax(dim=1) == labels).sum()
        numbers = torch.stack([correct.double(), *(value.detach().double() * len(labels) for value in used.values())])
        if len(labels) == 0:  # a mean over nothing is not a number
            numbers = torch.zeros_like(numbers)
        count = numbers.new_tensor([len(labels)])
        # One transfer from the device for all of them: it waits until everything before it is computed.
        images, hits, *sums = self._ranks.sum(torch.cat([count, numbers])).tolist()
        self.images += int(images)
        self._correct += int(hits)
        for name, value in zip(used, sums, strict=True):
            self._sums[name] = self._sums.get(name, 0.0) + value

    @property
    def loss(self) -> float:
        """Mean total loss."""
        return self._sums["total"] / self.images

    @property
    def classification(self) -> float:
        """Mean classification loss of the compound (or only) path."""
        return self._sums["classification"] / self.images

    @property
    def split(self) -> float | None:
        """Mean classification loss of the split path."""
        return self._mean_if_used("split")

    @property
    def consistency(self) -> float | None:
        """Mean consistency loss."""
        return self._mean_if_used("consistency")

    @property
    def accuracy(self) -> float:
        """Share of images classified right."""
        return self._correct / self.images

    def _mean_if_used(self, name: str) -> float | None:
        return self._sums[name] / self.images if name in self._sums else None
