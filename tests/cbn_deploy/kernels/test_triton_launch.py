"""How layers are cut into programs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbn_deploy.kernels.triton.launch import (
    LARGEST_BLOCK_PIXELS,
    LOOPING_PROGRAMS,
    MAX_COMPONENTS,
    MOST_PARTIAL_MASSES,
    SUMMED_CHANNELS,
    forward_launch,
    table_launch,
    tables_size,
    training_launch,
    vector_width,
)

CHANNELS = st.integers(1, 5000)
PIXELS = st.integers(1, 224 * 224)


@given(
    components=st.integers(1, MAX_COMPONENTS),
    channels=CHANNELS,
    pixels=PIXELS,
    item_size=st.sampled_from([2, 4]),
    channels_last=st.booleans(),
    images=st.none() | st.integers(1, 256),
)
def test_every_layer_is_cut_into_whole_pieces(
    components: int, channels: int, pixels: int, item_size: int, channels_last: bool, images: int | None
) -> None:
    launch = forward_launch(
        components=components,
        channels=channels,
        pixels=pixels,
        item_size=item_size,
        channels_last=channels_last,
        pixel_count=None if images is None else images * pixels,
    )
    for power in (launch.block_channels, launch.block_pixels, launch.warps, launch.vector):
        assert power & (power - 1) == 0 < power
    covered = launch.chunks * launch.block_channels
    assert covered - launch.block_channels < channels <= covered
    assert launch.full == (covered == channels)
    assert (channels if channels_last else pixels) % launch.vector == 0
    # A vector of pixels must not reach into the next program.
    assert channels_last or launch.block_pixels % launch.vector == 0
    # Bounds of what a thread holds, and of how much code the compiler unrolls.
    held = covered * launch.block_pixels / (32 * launch.warps)
    assert not launch.resident or (held <= 128 and launch.chunks <= 8)
    assert launch.block_channels * launch.block_pixels <= 16 * 32 * launch.warps
    if images is not None:
        assert launch.programs(images * pixels) * launch.block_pixels >= images * pixels


@given(
    components=st.integers(1, MAX_COMPONENTS),
    channels=CHANNELS,
    pixels=PIXELS,
    item_size=st.sampled_from([2, 4]),
    channels_last=st.booleans(),
    by_channel=st.booleans(),
    sums=st.booleans(),
)
def test_every_training_pass_is_cut_into_whole_pieces(
    components: int, channels: int, pixels: int, item_size: int, channels_last: bool, by_channel: bool, sums: bool
) -> None:
    launch = training_launch(
        components=components,
        channels=channels,
        pixels=pixels,
        item_size=item_size,
        channels_last=channels_last,
        by_channel=by_channel,
        sums=sums,
    )
    for power in (launch.block_channels, launch.block_pixels, launch.warps, launch.vector, launch.fold):
        assert power & (power - 1) == 0 < power
    assert (channels if channels_last else pixels) % launch.vector == 0
    assert launch.chunks * launch.block_channels >= channels
    # A vector of pixels lies in one block. What is folded lies in one thread, which has no neighbours channels last.
    assert launch.fold == 1 if channels_last else launch.block_pixels % launch.vector == 0
    assert launch.vector % launch.fold == 0


@given(components=st.integers(1, MAX_COMPONENTS), channels=CHANNELS)
def test_every_table_is_cut_into_whole_pieces(components: int, channels: int) -> None:
    launch = table_launch(components=components, channels=channels)
    for power in (
        launch.block_components,
        launch.block_channels,
        launch.row_channels,
        launch.pieces,
        launch.warps,
        MOST_PARTIAL_MASSES,
    ):
        assert power & (power - 1) == 0 < power
    assert launch.block_components >= components
    assert launch.pieces * SUMMED_CHANNELS >= channels
    # What a thread holds.
    assert launch.block_components * launch.block_channels <= 16 * 32 * launch.warps
    assert MOST_PARTIAL_MASSES >= LOOPING_PROGRAMS


def test_no_pixel_number_overflows() -> None:
    start = pytest.importorskip(
        "cbn_deploy.kernels.triton.start", reason="Triton is not installed", exc_type=ImportError
    )
    # A looping kernel's counter is compared after it has been advanced past the last pixel.
    assert start.MOST_PIXELS + LOOPING_PROGRAMS * LARGEST_BLOCK_PIXELS < 2**31


def test_few_pixels_are_spread_over_more_programs() -> None:
    shape = {"components": 4, "channels": 256, "pixels": 196, "item_size": 4, "channels_last": False}
    one, many = forward_launch(**shape, pixel_count=196), forward_launch(**shape, pixel_count=64 * 196)
    assert one.block_pixels < many.block_pixels
    assert one.programs(196) > many.programs(196)


@pytest.mark.parametrize(("contiguous", "item_size", "width"), [(49, 4, 1), (196, 4, 4), (196, 2, 4), (64, 2, 8)])
def test_vectors_divide_the_contiguous_axis(contiguous: int, item_size: int, width: int) -> None:
    assert vector_width(contiguous, item_size) == width


def test_tables_hold_the_reference_four_rows_a_component_and_a_constant() -> None:
    assert tables_size(3, 10) == 10 + 3 * 4 * 10 + 3


@pytest.mark.parametrize("components", [0, 17])
def test_components_beyond_the_registers_are_refused(components: int) -> None:
    with pytest.raises(ValueError, match="expected 1 to 16 components"):
        forward_launch(components=components, channels=8, pixels=1, item_size=4, channels_last=False)
