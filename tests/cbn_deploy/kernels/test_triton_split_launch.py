"""How the split path's passes are cut into programs, and who is given them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cbn_deploy.kernels import cuda
from cbn_deploy.kernels.triton.split_launch import ELEMENTS, LARGEST_WHOLE, split_launch


@given(
    channels=st.integers(1, 5000),
    pixels=st.integers(1, 224 * 224),
    item_size=st.sampled_from([2, 4]),
    channels_last=st.booleans(),
    sums=st.booleans(),
)
def test_every_image_is_cut_into_whole_pieces(
    channels: int, pixels: int, item_size: int, channels_last: bool, sums: bool
) -> None:
    launch = split_launch(channels=channels, pixels=pixels, item_size=item_size, channels_last=channels_last, sums=sums)
    for power in (launch.block_channels, launch.block_pixels, launch.warps, launch.vector):
        assert power & (power - 1) == 0 < power
    for covered, block, extent in (
        (launch.chunks(channels) * launch.block_channels, launch.block_channels, channels),
        (launch.blocks(pixels) * launch.block_pixels, launch.block_pixels, pixels),
    ):
        assert covered - block < extent <= covered
    contiguous, block = (channels, launch.block_channels) if channels_last else (pixels, launch.block_pixels)
    assert contiguous % launch.vector == block % launch.vector == 0
    elements = launch.block_channels * launch.block_pixels
    assert elements <= (LARGEST_WHOLE if channels_last and sums else ELEMENTS)
    assert elements <= 32 * 32 * launch.warps


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_cpu_is_not_for_triton(dtype: torch.dtype) -> None:
    assert cuda.split_passes(torch.zeros(1, 2, 3, dtype=dtype)) is None


@pytest.fixture
def everything_for_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    monkeypatch.setattr(cuda, "training_passes", lambda *_: object())


@pytest.mark.usefixtures("everything_for_triton")
def test_triton_is_given_what_it_can_number() -> None:
    assert cuda.split_passes(torch.empty(1, 2, 3)) is not None
    assert cuda.split_passes(torch.empty(1, 2, 2**30, device="meta")) is None
