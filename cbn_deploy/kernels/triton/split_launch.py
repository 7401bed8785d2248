"""How the split path's passes are cut into programs, from x's shape. Pure arithmetic, no Triton."""

from __future__ import annotations

from dataclasses import dataclass

from cbn_deploy.kernels.triton.launch import vector_width

__all__ = ["LARGEST_IMAGE", "SplitLaunch", "split_launch"]

# Elements of an image are numbered in int32, also those that a program's last block adds to them.
LARGEST_IMAGE = 2**30
# Elements that a thread holds of every tensor.
PER_THREAD = 16
# Of a pass from pixel to pixel: four warps, each thread with two to four of the widest accesses in flight.
ELEMENTS = 2048
# A whole image's channels of one block, held at once, are best summed so: 16 warps, 32 elements a thread.
LARGEST_WHOLE = 16384
# What a program that sums takes at once where that is too little.
LOOPING_ELEMENTS = 4096
# Pixels of a plane that a program takes at once.
PLANE_PIXELS, LOOPING_PLANE_PIXELS = 512, 1024
# Bytes of channels beside each other: two sectors of a cache line.
WIDTH_BYTES = 64


@dataclass(frozen=True, kw_only=True)
class SplitLaunch:
    """Compile-time constants of the kernels of :mod:`cbn_deploy.kernels.triton.split_kernels`.

    Attributes:
        channels_last: channels are the contiguous axis.
        vector: elements that one memory access may take; divides the extent of the contiguous axis.
        block_channels: channels a program, a power of two.
        block_pixels: pixels a piece, a power of two.
        warps: warps a program.
    """

    channels_last: bool
    vector: int
    block_channels: int
    block_pixels: int
    warps: int

    @property
    def constants(self) -> dict[str, int | bool]:
        """Keywords of :func:`cbn_deploy.kernels.triton.start.start` that all these kernels have."""
        return {
            "CHANNELS_LAST": self.channels_last,
            "VECTOR": self.vector,
            "BLOCK_D": self.block_channels,
            "BLOCK_P": self.block_pixels,
            "warps": self.warps,
        }

    def chunks(self, channels: int) -> int:
        """Blocks that make up the channels."""
        return -(-channels // self.block_channels)

    def blocks(self, pixels: int) -> int:
        """Pieces that make up the pixels of an image."""
        return -(-pixels // self.block_pixels)


def split_launch(*, channels: int, pixels: int, item_size: int, channels_last: bool, sums: bool) -> SplitLaunch:
    """Cut a pass into programs, each inside one image.

    Args:
        channels: D.
        pixels: product of the spatial axes.
        item_size: bytes an element of x.
        channels_last: channels are the contiguous axis.
        sums: the pass sums over the pixels, so that a program takes all of its channels' pixels; else a piece of them.
    """
    vector = vector_width(channels if channels_last else pixels, item_size)
    padded_channels, padded_pixels = _next_power_of_two(channels), _next_power_of_two(pixels)
    if channels_last:
        block_channels = min(padded_channels, WIDTH_BYTES // item_size)
        elements = min(block_channels * padded_pixels, ELEMENTS)
        if sums:
            whole = block_channels * padded_pixels
            elements = whole if whole <= LARGEST_WHOLE else LOOPING_ELEMENTS
        block_pixels = elements // block_channels
    else:
        block_pixels = min(padded_pixels, LOOPING_PLANE_PIXELS if sums else PLANE_PIXELS)
        # Single elements take an address each, and rows of the tables, which a thread then has many of, too.
        most = ELEMENTS if sums or vector > 1 else ELEMENTS // 2
        block_channels = min(padded_channels, most // block_pixels)
        elements = block_channels * block_pixels
    return SplitLaunch(
        channels_last=channels_last,
        vector=vector,
        block_channels=block_channels,
        block_pixels=block_pixels,
        warps=max(1, min(16, elements // (32 * PER_THREAD))),
    )


def _next_power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()
