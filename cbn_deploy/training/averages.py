"""Running means of one epoch, weighted by images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cbn_deploy.training.ranks import Ranks
from cbn_deploy.training.step import StepLosses

__all__ = ["EpochAverages", "StepSums", "means_of", "step_sums"]


@dataclass(frozen=True)
class StepSums:
    """What one portion adds to the epoch's means, on the device that computed it.

    Attributes:
        parts: names of the losses that the recipe uses, "total" and "classification" among them.
        values: float64 (2 + parts,): images, images classified right, and each loss times the images.
    """

    parts: tuple[str, ...]
    values: Tensor


def step_sums(losses: StepLosses, labels: Tensor) -> StepSums:
    """Of the B images of this rank's portion; B may be 0."""
    parts = {
        "total": losses.total,
        "classification": losses.classification,
        "split": losses.split,
        "consistency": losses.consistency,
    }
    used = {name: value.detach().double() for name, value in parts.items() if value is not None}
    correct = (losses.logits.detach().argmax(dim=1) == labels).sum()
    count = len(labels)
    values = torch.stack([torch.ones_like(losses.total, dtype=torch.float64), *used.values()]) * count
    if count == 0:  # a mean over nothing is not a number
        values = torch.zeros_like(values)
    return StepSums(tuple(used), torch.cat([values[:1], correct.double()[None], values[1:]]))


def means_of(parts: tuple[str, ...], values: Tensor) -> dict[str, float]:
    """The images and, per image, the hits and each of ``parts``, from a :class:`StepSums`; waits for the device."""
    # One transfer for all of them.
    images, *sums = values.tolist()
    return {"images": images} | {name: value / images for name, value in zip(("hits", *parts), sums, strict=True)}


class EpochAverages:
    """Add every step, read the means at any time (after the first step).

    Reading waits for the device, and is an exchange between the ranks: all of them have to read after the same steps.
    """

    def __init__(self, ranks: Ranks | None = None) -> None:
        self._ranks = ranks or Ranks()
        self._parts: tuple[str, ...] = ()
        self._local: Tensor | None = None
        self._means: dict[str, float] | None = None

    def add(self, sums: StepSums) -> None:
        """Count a portion; waits for nothing."""
        self._parts, self._means = sums.parts, None
        self._local = sums.values.clone() if self._local is None else self._local + sums.values

    @property
    def images(self) -> int:
        """Images of all ranks so far."""
        return int(self._read()["images"])

    @property
    def loss(self) -> float:
        """Mean total loss."""
        return self._read()["total"]

    @property
    def classification(self) -> float:
        """Mean classification loss of the compound (or only) path."""
        return self._read()["classification"]

    @property
    def split(self) -> float | None:
        """Mean classification loss of the split path."""
        return self._read().get("split")

    @property
    def consistency(self) -> float | None:
        """Mean consistency loss."""
        return self._read().get("consistency")

    @property
    def accuracy(self) -> float:
        """Share of images classified right."""
        return self._read()["hits"]

    def _read(self) -> dict[str, float]:
        if self._local is None:
            raise RuntimeError("there are no averages before the first step")
        if self._means is None:
            self._means = means_of(self._parts, self._ranks.sum(self._local))
        return self._means
