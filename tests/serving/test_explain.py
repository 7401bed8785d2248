"""The pictures of posteriors, decoded again and compared with the posteriors; their colours under colour blindness."""

from __future__ import annotations

import base64
import io
import itertools

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

from serving.explain import LayerMap, colour, layer_map, map_size


def posterior(components: int, height: int, width: int, sharpness: float = 2.0, seed: int = 0) -> np.ndarray:
    logits = sharpness * np.random.default_rng(seed).normal(size=(components, height, width))
    weights = np.exp(logits - logits.max(0))
    return np.asarray(weights / weights.sum(0), dtype=np.float32)


def picture(drawn: LayerMap) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(drawn.png)))


@pytest.mark.parametrize("components", [1, 2, 4, 9, 32, 33, 100, 256])
@pytest.mark.parametrize("shape", [(8, 8), (32, 24), (5, 7)])
def test_every_block_of_the_picture_is_the_gaussian_with_the_largest_posterior(
    components: int, shape: tuple[int, int]
) -> None:
    w = posterior(components, *shape)
    drawn = layer_map("stem", w, (4 * shape[0], 4 * shape[1]))
    assert (drawn.layer, drawn.height, drawn.width) == ("stem", *shape)
    entries = np.asarray(picture(drawn))
    levels = max(1, min(8, 256 // components))
    blocks = entries.reshape(shape[0], 4, shape[1], 4)
    assert (blocks == blocks[:, :1, :, :1]).all(), "a block for every pixel of the posterior"
    assert_array_equal(blocks[:, 0, :, 0] // levels, w.argmax(0))
    confidence = (w.max(0) - 1 / components) / (1 - 1 / components) if components > 1 else np.ones(shape)
    assert np.abs(blocks[:, 0, :, 0] % levels - confidence * (levels - 1)).max() <= 0.5 + 1e-5


def test_colours_are_pure_where_a_gaussian_is_certain_and_nearly_grey_where_all_are_alike() -> None:
    certain = np.zeros((4, 1, 4), np.float32)
    certain[range(4), 0, range(4)] = 1
    pixels = np.asarray(picture(layer_map("x", certain, (1, 4))).convert("RGB"))
    assert [tuple(pixel) for pixel in pixels[0].tolist()] == [colour(component) for component in range(4)]
    even = np.asarray(picture(layer_map("x", np.full((4, 1, 1), 0.25, np.float32), (1, 1))).convert("RGB"))
    assert int(even.max()) - int(even.min()) < 40


def test_eight_gaussians_have_colours_of_their_own_and_more_repeat_them_darker() -> None:
    assert len({colour(component) for component in range(32)}) == 32
    assert sum(colour(8)) < sum(colour(0))


# What the three kinds of colour blindness make of linear RGB (Machado, Oliveira and Fernandes 2009, severity 1).
VISION = {
    "full": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503041]]
)


def cielab(pixel: np.ndarray, vision: str) -> np.ndarray:
    srgb = pixel / 255.0
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    x, y, z = TO_XYZ @ np.clip(np.asarray(VISION[vision]) @ linear, 0, 1) / (0.95047, 1.0, 1.08883)
    x, y, z = (np.cbrt(v) if v > 0.008856 else 7.787 * v + 16 / 116 for v in (x, y, z))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("vision", VISION)
def test_four_gaussians_can_be_told_apart_by_everybody_at_any_saturation(vision: str) -> None:
    shades = {}
    for component in range(4):
        # Confidences from 0.4 on: 0.3 = 1/4 + confidence * 3/4 and so on.
        top = 0.25 + 0.75 * np.linspace(0.4, 1.0, 5)
        w = np.repeat(((1 - top) / 3)[None], 4, axis=0)
        w[component] = top
        drawn = layer_map("x", w[:, None].astype(np.float32), (1, 5))
        shades[component] = [cielab(pixel, vision) for pixel in np.asarray(picture(drawn).convert("RGB"))[0]]
    for first, second in itertools.combinations(range(4), 2):
        apart = min(np.linalg.norm(a - b) for a in shades[first] for b in shades[second])
        assert apart > 12, (first, second)


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        ([(32, 32), (16, 16), (8, 8)], (64, 64)),
        ([(16, 16), (112, 112)], (112, 112)),
        ([(24, 32)], (48, 64)),
        ([(512, 1024)], (128, 256)),
        ([(1, 300)], (1, 256)),
        ([(7, 7)], (70, 70)),
    ],
)
def test_all_layers_are_drawn_at_the_size_of_the_largest(
    shapes: list[tuple[int, int]], expected: tuple[int, int]
) -> None:
    assert map_size(shapes) == expected
    for height, width in shapes:
        assert picture(layer_map("x", posterior(3, height, width), expected)).size == (expected[1], expected[0])
