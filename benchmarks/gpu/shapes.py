"""The layers whose kernels are timed: (channels, height and width) of every normalisation of two networks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Shape:
    """One layer of a network at its batch size."""

    network: str
    batch: int
    channels: int
    size: int

    def tensor(self, device: str, dtype: torch.dtype, *, channels_last: bool) -> Tensor:
        """Random pixels."""
        x = torch.randn(self.batch, self.channels, self.size, self.size, device=device, dtype=dtype)
        return x.to(memory_format=torch.channels_last) if channels_last else x

    @property
    def label(self) -> str:
        """For tables."""
        return f"{self.batch}x{self.channels}x{self.size}x{self.size}"


RESNET32 = [Shape("resnet32", 128, 16, 32), Shape("resnet32", 128, 32, 16), Shape("resnet32", 128, 64, 8)]
RESNET50 = [
    Shape("resnet50", 64, channels, size)
    for channels, size in [
        (64, 112),
        (64, 56),
        (256, 56),
        (128, 56),
        (128, 28),
        (512, 28),
        (256, 28),
        (256, 14),
        (1024, 14),
        (512, 14),
        (512, 7),
        (2048, 7),
    ]
]
# For --dry-run: the interpreter takes a second for a thousand pixels.
TINY = [Shape("tiny", 2, 8, 4), Shape("tiny", 1, 520, 2)]


def random_tables(components: int, channels: int, device: str, seed: int = 0) -> tuple[Tensor, ...]:
    """tau, mean, var, scale, bias of Gaussians that overlap."""
    random = torch.Generator().manual_seed(seed)
    mean, scale, bias = (torch.randn(components, channels, generator=random) for _ in range(3))
    tau = torch.softmax(torch.randn(components, generator=random), 0)
    var = torch.rand(components, channels, generator=random) + 0.5
    return tuple(table.to(device) for table in (tau, mean, var, scale, bias))
