"""How a layer is cut into programs: block sizes and warps from its shape. Pure arithmetic, no Triton."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "MAX_COMPONENTS",
    "ForwardLaunch",
    "TableLaunch",
    "TrainingLaunch",
    "forward_launch",
    "table_launch",
    "tables_size",
    "training_launch",
    "vector_width",
]

# The kernels unroll the components; beyond 16 their sums do not fit in registers.
MAX_COMPONENTS = 16
# Up to here a program holds its pixels' channels in registers; wider layers are read twice.
WIDEST_RESIDENT = 512
# One program a multiprocessor of the largest GPUs: below this, smaller programs are better.
ENOUGH_PROGRAMS = 128
LARGEST_BLOCK_PIXELS = 512
# Programs of a kernel that sums over pixels: four for each multiprocessor of an H100.
LOOPING_PROGRAMS = 528
# Elements of a piece that a thread holds.
LARGEST_PIECE = 16


@dataclass(frozen=True, kw_only=True)
class ForwardLaunch:
    """Compile-time constants of :func:`cbn_deploy.kernels.triton.inference.forward_kernel`.

    Attributes:
        vector: elements that one memory access may take; divides the extent of the contiguous axis.
        block_channels: channels a piece, a power of two.
        block_pixels: pixels a program, a power of two, at least ``vector`` where pixels are contiguous.
        chunks: pieces a pixel.
        resident: pieces stay in registers between the two sums over the channels.
        full: chunks * block_channels is the number of channels.
        warps: warps a program.
    """

    vector: int
    block_channels: int
    block_pixels: int
    chunks: int
    resident: bool
    full: bool
    warps: int

    def programs(self, pixel_count: int) -> int:
        """Grid size for ``pixel_count`` = images * pixels."""
        return -(-pixel_count // self.block_pixels)

    def constants(self) -> dict[str, int | bool]:
        """By the kernel's parameter names."""
        return {
            "VECTOR": self.vector,
            "BLOCK_D": self.block_channels,
            "BLOCK_P": self.block_pixels,
            "CHUNKS": self.chunks,
            "RESIDENT": self.resident,
            "FULL": self.full,
        }


def tables_size(components: int, channels: int) -> int:
    """Float32 numbers in the tables of a layer (:mod:`cbn_deploy.kernels.triton.tables`)."""
    return (1 + 4 * components) * channels + components


def vector_width(contiguous: int, item_size: int) -> int:
    """Elements in the widest access of at most 16 bytes that never crosses the end of a contiguous run."""
    width = 16 // item_size
    while contiguous % width:
        width //= 2
    return width


def forward_launch(
    *,
    components: int,
    channels: int,
    pixels: int,
    item_size: int,
    channels_last: bool,
    pixel_count: int | None = None,
) -> ForwardLaunch:
    """Cut a layer into programs.

    Args:
        components: M, 1 to 16.
        channels: D.
        pixels: product of the spatial axes.
        item_size: bytes an element of X.
        channels_last: channels are the contiguous axis.
        pixel_count: images * pixels, where known: few pixels are spread over more programs.
    """
    if not 1 <= components <= MAX_COMPONENTS:
        raise ValueError(f"expected 1 to {MAX_COMPONENTS} components, got {components}")
    vector = vector_width(channels if channels_last else pixels, item_size)
    padded = _next_power_of_two(channels)
    resident = padded <= WIDEST_RESIDENT
    if resident:
        # Numbers a thread holds: what one softmax costs is shared by more elements, but registers are finite; single
        # elements take an address each.
        held = (64 if vector == 8 else 32 if vector > 1 else 16) // (2 if components > 8 else 1)
        warps = 4 if padded <= 128 else 8
        block_channels = max(padded // 4, min(padded, 32 if channels_last else 4))
        # A piece has one sum a component.
        most = LARGEST_PIECE * 32 * warps // block_channels
        block_pixels = min(LARGEST_BLOCK_PIXELS, most, held * 32 * warps // padded)
    else:
        warps, block_pixels = 8, 32
        block_channels = 64 if components <= 8 else 32
    smallest = 16 if not resident else 4 if channels_last else max(4, vector)
    while pixel_count is not None and -(-pixel_count // block_pixels) < ENOUGH_PROGRAMS and block_pixels > smallest:
        block_pixels //= 2
        # With no more threads than channels in a piece, Triton would load the tables in another layout than X.
        if 32 * (warps // 2) > block_channels:
            warps //= 2
    return ForwardLaunch(
        vector=vector,
        block_channels=block_channels,
        block_pixels=block_pixels,
        chunks=-(-channels // block_channels),
        resident=resident,
        full=channels % block_channels == 0,
        warps=warps,
    )


def _next_power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


@dataclass(frozen=True, kw_only=True)
class TrainingLaunch:
    """Compile-time constants of the kernels of :mod:`cbn_deploy.kernels.triton.training_kernels`.

    Attributes:
        vector: elements that one memory access may take; divides the extent of the contiguous axis.
        block_channels: channels a piece, a power of two.
        block_pixels: pixels a block, a power of two.
        chunks: pieces that make up the channels.
        fold: neighbouring pixels that a sum takes at once; divides ``block_pixels``.
        warps: warps a program.
    """

    vector: int
    block_channels: int
    block_pixels: int
    chunks: int
    fold: int
    warps: int

    def programs(self, pixel_count: int) -> int:
        """One program a block of pixels."""
        return -(-pixel_count // self.block_pixels)

    def looping_programs(self, pixel_count: int) -> int:
        """As many as keep a GPU busy: each takes many blocks and leaves one set of sums."""
        return min(self.programs(pixel_count), LOOPING_PROGRAMS)


def training_launch(
    *, components: int, channels: int, pixels: int, item_size: int, channels_last: bool, by_channel: bool, sums: bool
) -> TrainingLaunch:
    """Cut a training pass into programs.

    Args:
        components: M, 1 to 16.
        channels: D.
        pixels: product of the spatial axes.
        item_size: bytes an element of x.
        channels_last: channels are the contiguous axis.
        by_channel: channels do not meet in this pass, so that blocks of them can go to different programs.
        sums: a program keeps sums over its pixels, two a component.
    """
    if not 1 <= components <= MAX_COMPONENTS:
        raise ValueError(f"expected 1 to {MAX_COMPONENTS} components, got {components}")
    padded = _next_power_of_two(channels)
    vector = vector_width(channels if channels_last else pixels, item_size)
    # A thread has its neighbouring pixels as vectors: only so many can be folded into one sum without an exchange.
    fold = 1 if channels_last else min(vector, 4)
    most = 16 if components <= 8 else 8
    if sums or not channels_last:
        held = max(1, most * fold // (4 if sums else 8))
    else:  # one access of 16 bytes, unless every channel has a number for each component as well
        held = most // 2 if by_channel else most // 4
    if by_channel:
        block_channels, warps = min(padded, 32), 4
    elif padded <= WIDEST_RESIDENT:
        block_channels, warps = padded, 4 if padded <= 128 else 8
    else:
        block_channels, warps, held = 64, 8, min(held, 8)
    block_pixels = max(8, min(LARGEST_BLOCK_PIXELS, held * 32 * warps // block_channels))
    return TrainingLaunch(
        vector=vector,
        block_channels=block_channels,
        block_pixels=block_pixels,
        chunks=-(-channels // block_channels),
        fold=fold,
        warps=warps,
    )


# Partial sums that a program adds at once, channels it adds them for, and its warps: sixteen numbers a thread.
SUMMED_ROWS, SUMMED_CHANNELS, SUMMED_WARPS = 256, 16, 8
# At least LOOPING_PROGRAMS, a power of two.
MOST_PARTIAL_MASSES = 1024


@dataclass(frozen=True, kw_only=True)
class TableLaunch:
    """Compile-time constants of the kernels of :mod:`cbn_deploy.kernels.triton.training_table_kernels`.

    Attributes:
        block_components: M, or the next power of two.
        block_channels: channels that a program takes at once, for all components.
        row_channels: channels that a program takes at once, for one component.
        pieces: SUMMED_CHANNELS each, make up the channels; a power of two, so that a kernel can add one number of each.
        warps: of a program that takes all components.
    """

    block_components: int
    block_channels: int
    row_channels: int
    pieces: int
    warps: int


def table_launch(*, components: int, channels: int) -> TableLaunch:
    """Cut (M, D) tables, M = ``components`` up to 16, D = ``channels``."""
    block_components, padded = _next_power_of_two(components), _next_power_of_two(channels)
    block_channels = min(padded, 4096 // block_components)
    return TableLaunch(
        block_components=block_components,
        block_channels=block_channels,
        row_channels=min(padded, 1024),
        pieces=_next_power_of_two(-(-channels // SUMMED_CHANNELS)),
        warps=max(1, min(8, block_components * block_channels // 128)),
    )
