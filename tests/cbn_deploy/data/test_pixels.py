from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cbn_deploy.data.pixels import PixelNormalizer
from cbn_deploy.runtime import Preprocessing
from cbn_deploy.runtime.preprocessing import normalize

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
LEVELS = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)

channels = st.tuples(*[st.floats(0.0078125, 1, width=32)] * 3)


@pytest.mark.parametrize("device", DEVICES)
@given(mean=channels, std=channels)
def test_every_pixel_value_becomes_what_the_server_computes(device: str, mean, std) -> None:  # type: ignore[no-untyped-def]
    preprocessing = Preprocessing(height=16, width=16, mean=mean, std=std)
    ours = PixelNormalizer(preprocessing, torch.device(device))(torch.from_numpy(LEVELS))
    assert ours.is_contiguous()
    np.testing.assert_array_equal(ours.cpu().numpy(), normalize(LEVELS, preprocessing))


def test_any_leading_shape_and_no_image_at_all() -> None:
    preprocessing = Preprocessing(height=3, width=4, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    normalizer = PixelNormalizer(preprocessing, torch.device("cpu"))
    for leading in ((), (5,), (2, 3), (0,)):
        pixels = np.random.default_rng(0).integers(0, 256, (*leading, 3, 4, 3), dtype=np.uint8)
        before = pixels.copy()
        np.testing.assert_array_equal(normalizer(torch.from_numpy(pixels)).numpy(), normalize(pixels, preprocessing))
        np.testing.assert_array_equal(pixels, before)
