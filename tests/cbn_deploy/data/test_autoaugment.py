"""Every operation against its definition, written in numpy; the policy's probabilities against arithmetic."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps

from cbn_deploy.data.autoaugment import CIFAR10_POLICY, IMAGENET_POLICY, OPERATIONS, SubPolicy, autoaugment

FILL = (1, 2, 3)
HEIGHT, WIDTH = 32, 40


@pytest.fixture
def pixels() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(20, 230, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def apply(name: str, pixels: NDArray[np.uint8], level: float) -> NDArray[np.uint8]:
    return np.asarray(OPERATIONS[name](Image.fromarray(pixels), level, FILL))


def blend(low: NDArray[np.float64], pixels: NDArray[np.uint8], factor: float) -> NDArray[np.float64]:
    return np.clip(low + factor * (pixels.astype(np.float64) - low), 0, 255)


def assert_within_rounding(actual: NDArray[np.uint8], expected: NDArray[np.float64]) -> None:
    assert np.abs(actual - expected).max() <= 1


LEVELS = [-1.0, -1 / 3, 0.0, 2 / 9, 1.0]


@pytest.mark.parametrize("level", LEVELS)
def test_brightness_blends_with_black(level: float, pixels: NDArray[np.uint8]) -> None:
    assert_within_rounding(apply("brightness", pixels, level), blend(np.zeros(pixels.shape), pixels, 1 + 0.9 * level))


@pytest.mark.parametrize("level", LEVELS)
def test_color_blends_with_grey(level: float, pixels: NDArray[np.uint8]) -> None:
    grey = np.round(pixels @ [0.299, 0.587, 0.114])[..., None]
    assert_within_rounding(apply("color", pixels, level), blend(grey, pixels, 1 + 0.9 * level))


@pytest.mark.parametrize("level", LEVELS)
def test_contrast_blends_with_the_mean_grey(level: float, pixels: NDArray[np.uint8]) -> None:
    mean = np.round((pixels @ [0.299, 0.587, 0.114]).mean())
    assert_within_rounding(apply("contrast", pixels, level), blend(mean, pixels, 1 + 0.9 * level))


@pytest.mark.parametrize("level", LEVELS)
def test_sharpness_blends_with_a_smoothed_image(level: float, pixels: NDArray[np.uint8]) -> None:
    smooth = pixels.astype(np.float64)
    padded = pixels.astype(np.float64)
    total = sum(padded[dy : HEIGHT - 2 + dy, dx : WIDTH - 2 + dx] for dy in range(3) for dx in range(3))
    smooth[1:-1, 1:-1] = np.floor((total + 4 * padded[1:-1, 1:-1]) / 13 + 0.5)
    assert_within_rounding(apply("sharpness", pixels, level), blend(smooth, pixels, 1 + 0.9 * level))


@pytest.mark.parametrize(("level", "bits"), [(0, 8), (2 / 9, 7), (7 / 9, 5), (-7 / 9, 5), (1, 4)])
def test_posterize_keeps_the_high_bits(level: float, bits: int, pixels: NDArray[np.uint8]) -> None:
    np.testing.assert_array_equal(apply("posterize", pixels, level), (pixels >> (8 - bits)) << (8 - bits))


@pytest.mark.parametrize("magnitude", [0, 2, 3, 5, 8, 9])
@pytest.mark.parametrize("sign", [-1, 1])
def test_solarize_inverts_from_the_threshold_up(magnitude: int, sign: int, pixels: NDArray[np.uint8]) -> None:
    expected = np.where(pixels < round(255 * (9 - magnitude) / 9), pixels, 255 - pixels)
    np.testing.assert_array_equal(apply("solarize", pixels, sign * magnitude / 9), expected)


def test_invert(pixels: NDArray[np.uint8]) -> None:
    np.testing.assert_array_equal(apply("invert", pixels, 0), 255 - pixels)


def test_autocontrast_stretches_every_channel(pixels: NDArray[np.uint8]) -> None:
    pixels[..., 1] = pixels[..., 1] // 3 + 50
    low, high = pixels.min(axis=(0, 1)).astype(float), pixels.max(axis=(0, 1))
    assert_within_rounding(apply("autocontrast", pixels, 0), (pixels - low) * 255 / (high - low))


def test_equalize_flattens_the_histogram(pixels: NDArray[np.uint8]) -> None:
    skewed = (255 * (pixels / 255) ** 3).astype(np.uint8)
    equal = apply("equalize", skewed, 0)
    for channel in range(3):
        order = np.argsort(skewed[..., channel], axis=None, kind="stable")
        assert (np.diff(equal[..., channel].ravel()[order].astype(int)) >= 0).all()
        # A flat histogram has the cumulative share v / 255 at value v, up to the share of the fullest bin.
        cumulative = np.cumsum(np.bincount(equal[..., channel].ravel(), minlength=256)) / (HEIGHT * WIDTH)
        fullest = np.bincount(skewed[..., channel].ravel()).max() / (HEIGHT * WIDTH)
        present = np.unique(equal[..., channel])
        assert np.abs(cumulative[present] - present / 255).max() <= 2 * fullest


@pytest.mark.parametrize(("name", "axis", "side"), [("translate_x", 1, WIDTH), ("translate_y", 0, HEIGHT)])
@pytest.mark.parametrize("level", [1.0, -8 / 9, 1 / 3])
def test_translate_moves_by_a_part_of_the_side(
    name: str, axis: int, side: int, level: float, pixels: NDArray[np.uint8]
) -> None:
    shift = int(abs(level) * side * 150 / 331) * (1 if level > 0 else -1)
    expected = np.roll(pixels, shift, axis=axis)
    empty = slice(0, shift) if shift > 0 else slice(side + shift, side)
    expected[(slice(None),) * axis + (empty,)] = FILL
    np.testing.assert_array_equal(apply(name, pixels, level), expected)


@pytest.mark.parametrize("name", ["shear_x", "shear_y"])
@pytest.mark.parametrize("level", [1.0, -7 / 9, 0.0])
def test_shear_moves_each_line_in_proportion(name: str, level: float, pixels: NDArray[np.uint8]) -> None:
    source = pixels if name == "shear_x" else pixels.transpose(1, 0, 2)
    expected = np.empty_like(source)
    for line in range(len(source)):
        for place in range(source.shape[1]):
            origin = int(np.floor(place + 0.5 + 0.3 * level * (line + 0.5)))
            expected[line, place] = source[line, origin] if 0 <= origin < source.shape[1] else FILL
    actual = apply(name, pixels, level)
    np.testing.assert_array_equal(actual if name == "shear_x" else actual.transpose(1, 0, 2), expected)


def test_rotate_turns_by_thirty_degrees_a_level() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    np.testing.assert_array_equal(apply("rotate", pixels, 3), np.rot90(pixels))
    np.testing.assert_array_equal(apply("rotate", pixels, -3), np.rot90(pixels, -1))
    turned = apply("rotate", np.full((32, 32, 3), 200, np.uint8), 1.0)
    assert tuple(turned[0, 0]) == FILL


def test_policy_has_the_tables_operations() -> None:
    assert len(CIFAR10_POLICY) == 25
    uses = Counter(name for sub_policy in CIFAR10_POLICY for name, _, _ in sub_policy)
    assert uses == {
        "equalize": 9, "autocontrast": 7, "translate_y": 5, "sharpness": 5, "brightness": 4, "color": 5, "contrast": 2,
        "solarize": 4, "invert": 3, "shear_y": 2, "translate_x": 2, "posterize": 1, "rotate": 1,
    }  # fmt: skip
    assert all(0 <= p <= 1 and 0 <= m <= 9 for sub_policy in CIFAR10_POLICY for _, p, m in sub_policy)


def test_the_policy_for_imagenet_has_the_tables_operations() -> None:
    assert len(IMAGENET_POLICY) == 25
    uses = Counter(name for sub_policy in IMAGENET_POLICY for name, _, _ in sub_policy)
    assert uses == {
        "equalize": 17, "solarize": 7, "color": 6, "posterize": 5, "rotate": 6, "invert": 3, "autocontrast": 2,
        "contrast": 2, "shear_x": 1, "sharpness": 1,
    }  # fmt: skip
    # No image is moved to the side, which a random crop does already.
    chances = sorted(p for sub_policy in IMAGENET_POLICY for name, p, _ in sub_policy if name == "rotate")
    assert chances == [0.2, 0.4, 0.6, 0.8, 0.8, 0.8]


@pytest.mark.parametrize("policy", [CIFAR10_POLICY, IMAGENET_POLICY])
def test_operations_are_applied_with_the_tables_probabilities(
    policy: tuple[SubPolicy, ...], pixels: NDArray[np.uint8]
) -> None:
    """The share of unchanged images is the mean over sub-policies of prod(1 - p), where "color 0" never changes one."""
    stay = [
        float(np.prod([1.0 if (name, m) == ("color", 0) else 1 - p for name, p, m in sub_policy]))
        for sub_policy in policy
    ]
    expected, n = float(np.mean(stay)), 4000
    rng, image = np.random.default_rng(0), Image.fromarray(pixels)
    unchanged = sum(np.array_equal(np.asarray(autoaugment(image, rng, FILL, policy)), pixels) for _ in range(n)) / n
    assert unchanged == pytest.approx(expected, abs=4 * np.sqrt(expected * (1 - expected) / n))


def test_both_directions_occur(pixels: NDArray[np.uint8]) -> None:
    results = [np.asarray(autoaugment(Image.fromarray(pixels), np.random.default_rng(s), FILL)) for s in range(300)]
    filled_top = sum((r[0] == FILL).all() and not (r[-1] == FILL).all() for r in results)
    filled_bottom = sum((r[-1] == FILL).all() and not (r[0] == FILL).all() for r in results)
    assert filled_top > 10
    assert filled_bottom > 10


def test_as_many_numbers_are_drawn_whatever_happens(pixels: NDArray[np.uint8]) -> None:
    for seed in range(20):
        rng, plain = np.random.default_rng(seed), np.random.default_rng(seed)
        autoaugment(Image.fromarray(pixels), rng, FILL)
        plain.random(5)
        assert rng.random() == plain.random()


PILLOW: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "autocontrast": lambda image, _: ImageOps.autocontrast(image),
    "equalize": lambda image, _: ImageOps.equalize(image),
    "invert": lambda image, _: ImageOps.invert(image),
    "posterize": lambda image, level: ImageOps.posterize(image, 8 - round(4 * abs(level))),
    "solarize": lambda image, level: ImageOps.solarize(image, round(255 * (1 - abs(level)))),
}


@pytest.mark.parametrize("name", PILLOW)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    limits=st.tuples(st.integers(0, 255), st.integers(0, 255)),
    flat=st.booleans(),
    level=st.integers(-9, 9).map(lambda tenth: tenth / 9),
)
def test_tables_are_those_of_pillow(
    name: str, seed: int, size: tuple[int, int], limits: tuple[int, int], flat: bool, level: float
) -> None:
    pixels = np.random.default_rng(seed).integers(min(limits), max(limits) + 1, (*size, 3)).astype(np.uint8)
    if flat:
        pixels[..., 1] = 200
    image = Image.fromarray(pixels)
    ours = np.asarray(OPERATIONS[name](image, level, (0, 0, 0)))
    np.testing.assert_array_equal(ours, np.asarray(PILLOW[name](image, level)))
