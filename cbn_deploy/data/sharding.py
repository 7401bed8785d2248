"""Who computes which images of a batch: the ranks of a distributed training and the portions of an accumulated step."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

__all__ = ["Sharding"]


@dataclass(frozen=True, kw_only=True)
class Sharding:
    """The part of every batch that one process computes.

    A batch is cut into ``accumulate`` portions, one after another, and each portion into the ranks' shares. So the
    images of a portion, and with them its batch statistics, do not depend on the number of ranks.

    Attributes:
        rank: of this process, 0 ... ``world_size`` - 1.
        world_size: number of processes.
        accumulate: portions of a batch, each normalised by its own statistics; fewer where that would leave one with
            less than two images.
    """

    rank: int = 0
    world_size: int = 1
    accumulate: int = 1

    def __post_init__(self) -> None:
        if self.accumulate < 1:
            raise ValueError(f"accumulate must be at least 1, got {self.accumulate}")
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank {self.rank} does not exist among {self.world_size}")

    def shares(self, images: int) -> list[range]:
        """This rank's positions in each portion of a batch of ``images``; a share may be empty."""
        portions = _parts(range(images), max(1, min(self.accumulate, images // 2)))
        return [_parts(portion, self.world_size)[self.rank] for portion in portions]


def _parts(positions: range, count: int) -> list[range]:
    """Neighbouring parts whose sizes differ by one at most, the larger ones first."""
    size, larger = divmod(len(positions), count)
    ends = [part * size + min(part, larger) for part in range(count + 1)]
    return [positions[start:end] for start, end in pairwise(ends)]
