"""AutoAugment on whole batches in torch, on any device, with the pixels of :mod:`cbn_deploy.data.autoaugment`.

Every level of a policy is known beforehand. So what an operation does to a place or to a value is not computed again
here but tabulated once, by Pillow: where each pixel of a turned image comes from, what solarizing makes of each value,
what blending makes of each pair of values. On the device there are look-ups and whole numbers, which no rounding of
another processor can change; autocontrast alone computes in float64, one rounding an operation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from cbn_deploy.data.autoaugment import OPERATIONS, Fill, SubPolicy, enhancement_factor

__all__ = ["Case", "DeviceOperations", "Group", "PolicyCases"]

Case = tuple[str, float]
"""An operation's name and its level in [-1, 1]."""

# Operations that are tabulated alike are applied together; the others each by themselves.
_KINDS = {
    **dict.fromkeys(("shear_x", "shear_y", "translate_x", "translate_y", "rotate"), "geometric"),
    **dict.fromkeys(("brightness", "posterize", "solarize", "invert"), "pointwise"),
}
_BLENDING = ("color", "contrast", "sharpness")


class Group(NamedTuple):
    """The n images of a batch that go through one kind of operation.

    Attributes:
        kind: "geometric", "pointwise", or the operation's own name.
        positions: int64 (n,), which images of the batch.
        rows: int64 (n,), each one's row in the kind's table.
    """

    kind: str
    positions: NDArray[np.int64]
    rows: NDArray[np.int64]


class PolicyCases:
    """Turns the numbers drawn for images into the operations that they choose, as ``autoaugment`` does; on the host.

    Args:
        policy: the sub-policies.

    Attributes:
        cases: the different operations and levels of the policy.
    """

    def __init__(self, policy: Sequence[SubPolicy]) -> None:
        signed = [
            [[(name, magnitude / 9), (name, -magnitude / 9)] for name, _, magnitude in sub_policy]
            for sub_policy in policy
        ]
        self.cases: list[Case] = list(dict.fromkeys(case for turns in signed for signs in turns for case in signs))
        numbers = {case: number for number, case in enumerate(self.cases)}
        self._numbers = np.array([[[numbers[case] for case in signs] for signs in turns] for turns in signed])
        self._chances = np.array([[chance for _, chance, _ in sub_policy] for sub_policy in policy])

    def chosen(self, uniforms: NDArray[np.float64]) -> list[NDArray[np.int64]]:
        """The five numbers of each of N images (N, 5) -> number of the first and of the second case (N,); -1: none."""
        choices = (uniforms[:, 0] * len(self._chances)).astype(np.int64)
        cases = []
        for turn in range(2):
            negative = (uniforms[:, 3 + turn] >= 0.5).astype(np.int64)
            applied = uniforms[:, 1 + turn] < self._chances[choices, turn]
            cases.append(np.where(applied, self._numbers[choices, turn, negative], -1))
        return cases


class DeviceOperations:
    """Operations on whole batches of images of one size.

    Args:
        cases: the operations that will be asked for, by their position here.
        size: (H, W) of the images.
        fill: colour of what moves in from outside.
        device: where the images are.
    """

    def __init__(self, cases: Sequence[Case], size: tuple[int, int], fill: Fill, device: torch.device) -> None:
        self._size = size
        self._fill = torch.tensor(fill, dtype=torch.uint8, device=device)
        self._kinds = np.array([_KINDS.get(name, name) for name, _ in cases])
        levels = list(dict.fromkeys(level for name, level in cases if name in _BLENDING))
        geometric = [case for case in cases if _KINDS.get(case[0]) == "geometric"]
        pointwise = [case for case in cases if _KINDS.get(case[0]) == "pointwise"]
        rows = {case: row for table in (geometric, pointwise) for row, case in enumerate(table)}
        rows |= {(name, level): levels.index(level) for name, level in cases if name in _BLENDING}
        self._rows = np.array([rows.get(case, 0) for case in cases], dtype=np.int64)
        sources = _stacked([_sources(case, size) for case in geometric], (size[0] * size[1],), device).long()
        self._sources, self._inside = sources.clamp(min=0), (sources >= 0)[..., None]
        self._values = _stacked([_values(case) for case in pointwise], (256,), device)
        self._blends = _stacked([_blends(level) for level in levels], (256, 256), device)
        self._scales = torch.from_numpy(255.0 / np.maximum(np.arange(256), 1)).to(device)
        self._levels = torch.arange(256, dtype=torch.float64, device=device)

    def groups(self, cases: NDArray[np.int64]) -> list[Group]:
        """Images grouped by kind of operation, from each one's case (N,), where -1 is none; on the host."""
        kinds = np.where(cases >= 0, self._kinds[cases], "")
        groups = []
        for kind in dict.fromkeys(self._kinds.tolist()):
            positions = np.flatnonzero(kinds == kind)
            if len(positions):
                groups.append(Group(kind, positions, self._rows[cases[positions]]))
        return groups

    def apply(self, pixels: Tensor, kind: str, positions: Tensor, rows: Tensor) -> None:
        """Change the images of one group.

        Args:
            pixels: uint8 (N, H, W, 3), contiguous; changed in place.
            kind: of the group.
            positions: int64 (n,) on the device, of the group.
            rows: int64 (n,) on the device, of the group.
        """
        if kind == "geometric":
            changed = self._moved(pixels, positions, rows)
        else:
            values = pixels.index_select(0, positions)
            rows = rows.view(-1, 1, 1, 1)
            if kind == "pointwise":
                changed = self._values.view(-1)[rows * 256 + values]
            elif kind in _BLENDING:
                changed = self._blends.view(-1)[(rows * 256 + _degenerate(kind, values)) * 256 + values]
            elif kind == "autocontrast":
                changed = _looked_up(self._stretching(values), _entries(values))
            else:
                entries = _entries(values)
                changed = _looked_up(_flattening(values, entries), entries)
        pixels.index_copy_(0, positions, changed)

    def _moved(self, pixels: Tensor, positions: Tensor, rows: Tensor) -> Tensor:
        height, width = self._size
        sources = self._sources[rows] + positions[:, None] * (height * width)
        moved = torch.where(self._inside[rows], pixels.view(-1, 3)[sources], self._fill)
        return moved.view(-1, height, width, 3)

    def _stretching(self, values: Tensor) -> Tensor:
        """Autocontrast's table of every image and channel: uint8 (n, 3, 256)."""
        low, high = values.amin((1, 2)).long(), values.amax((1, 2)).long()
        scale = self._scales[high - low]
        offset = -low * scale
        # Two operations, because Pillow rounds twice; truncated towards zero as there.
        scaled = self._levels * scale[..., None]
        stretched = (scaled + offset[..., None]).long().clamp(0, 255)
        return torch.where((high > low)[..., None], stretched, self._levels.long()).to(torch.uint8)


def _entries(values: Tensor) -> Tensor:
    """Where each value is in the flat table of its image and channel: (n, H, W, 3) -> int64, the same shape."""
    tables = torch.arange(0, 3 * 256 * len(values), 256, device=values.device)
    return tables.view(-1, 1, 1, 3) + values


def _looked_up(tables: Tensor, entries: Tensor) -> Tensor:
    return tables.view(-1)[entries]


def _flattening(values: Tensor, entries: Tensor) -> Tensor:
    """Equalize's table of every image and channel: uint8 (n, 3, 256)."""
    n, height, width, _ = values.shape
    # 32-bit counters, which a GPU adds to in one instruction.
    counts = torch.zeros(n * 3 * 256, dtype=torch.int32, device=values.device)
    counts.scatter_add_(0, entries.view(-1), counts.new_ones(1).expand(entries.numel()))
    counts = counts.view(n, 3, 256)
    below = counts.cumsum(2, dtype=torch.int32) - counts
    brightest = values.amax((1, 2)).long()[..., None]
    # All but the brightest level's pixels.
    step = torch.div(height * width - counts.gather(2, brightest), 255, rounding_mode="trunc")
    half = torch.div(step, 2, rounding_mode="trunc")
    flattened = torch.div(below + half, step.clamp(min=1), rounding_mode="trunc").clamp(0, 255)
    levels = torch.arange(256, dtype=torch.int32, device=values.device)
    return torch.where(step > 0, flattened, levels).to(torch.uint8)


def _degenerate(kind: str, values: Tensor) -> Tensor:
    """What a factor of 0 would leave of (n, H, W, 3): whole numbers 0 ... 255 that broadcast to this shape."""
    if kind == "sharpness":
        return _smooth(values)
    grey = _grey(values)
    if kind == "color":
        return grey
    pixels = grey.shape[1] * grey.shape[2]
    # int(mean + 0.5) without a fraction.
    doubled = 2 * grey.sum((1, 2, 3), keepdim=True) + pixels
    return torch.div(doubled, 2 * pixels, rounding_mode="trunc")


def _grey(values: Tensor) -> Tensor:
    """(n, H, W, 3) -> int32 (n, H, W, 1), with Pillow's weights in 1/65536."""
    red, green, blue = torch.split(values.int(), 1, dim=3)
    return torch.bitwise_right_shift(red * 19595 + green * 38470 + blue * 7471 + 0x8000, 16)


def _smooth(values: Tensor) -> Tensor:
    """Pillow's filter SMOOTH, the borders left as they are: (n, H, W, 3) -> int16, the same shape.

    Pillow adds up the nine weighted neighbours in float32 and rounds. The sum is a multiple of 1/13, so it never lies
    within 1/26 of where the rounding changes: whole numbers give the same.
    """
    smooth = values.short()
    if min(values.shape[1:3]) < 3:
        return smooth
    lines = smooth[:, :-2] + smooth[:, 1:-1] + smooth[:, 2:]
    total = lines[:, :, :-2] + lines[:, :, 1:-1] + lines[:, :, 2:] + 4 * smooth[:, 1:-1, 1:-1]
    smooth[:, 1:-1, 1:-1] = torch.div(2 * total + 13, 26, rounding_mode="trunc")
    return smooth


def _stacked(tables: list[NDArray[np.generic]], shape: tuple[int, ...], device: torch.device) -> Tensor:
    array = np.stack(tables) if tables else np.empty((0, *shape), np.uint8)
    return torch.from_numpy(array).to(device)


def _sources(case: Case, size: tuple[int, int]) -> NDArray[np.generic]:
    """Where each pixel of the result comes from: int64 (H * W,) places in the image, -1 for outside."""
    # An image whose colours count its pixels from 1; what moves in is 0.
    places = np.arange(1, size[0] * size[1] + 1).reshape(size)
    colours = np.stack([places >> 16, places >> 8 & 255, places & 255], axis=-1).astype(np.uint8)
    red, green, blue = _applied(case, colours).astype(np.int64).reshape(-1, 3).T
    origins: NDArray[np.int64] = (red << 16 | green << 8 | blue) - 1
    return origins


def _values(case: Case) -> NDArray[np.generic]:
    """What becomes of each value: uint8 (256,)."""
    levels = np.arange(256, dtype=np.uint8).reshape(1, 256, 1).repeat(3, axis=2)
    values: NDArray[np.uint8] = _applied(case, levels)[0, :, 0]
    return values


def _applied(case: Case, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    name, level = case
    return np.asarray(OPERATIONS[name](Image.fromarray(pixels), level, (0, 0, 0)))


def _blends(level: float) -> NDArray[np.generic]:
    """What enhancing makes of (degenerate value, value): uint8 (256, 256)."""
    levels = np.arange(256, dtype=np.uint8)
    degenerate, value = (Image.fromarray(grid) for grid in np.meshgrid(levels, levels, indexing="ij"))
    return np.array(Image.blend(degenerate, value, enhancement_factor(level)))
