"""Running means of one epoch, weighted by images."""

from __future__ import annotations

from torch import Tensor

from cbn_deploy.training.step import StepLosses

__all__ = ["EpochAverages"]


class EpochAverages:
    """Add every step, read the means at any time (after the first step)."""

    def __init__(self) -> None:
        self.images = 0
        self._correct = 0
        self._sums: dict[str, float] = {}

    def add(self, losses: StepLosses, labels: Tensor) -> None:
        """Count one step's B images."""
        self.images += len(labels)
        self._correct += int((losses.logits.detach().argmax(dim=1) == labels).sum())
        parts = {
            "total": losses.total,
            "classification": losses.classification,
            "split": losses.split,
            "consistency": losses.consistency,
        }
        for name, value in parts.items():
            if value is not None:
                self._sums[name] = self._sums.get(name, 0.0) + float(value.detach()) * len(labels)

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
