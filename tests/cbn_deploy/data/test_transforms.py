from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from cbn_deploy.data import ArrayImageSet, ViewConfig
from cbn_deploy.data.transforms import Views, cutout, padded_crop, random_box
from cbn_deploy.runtime import Preprocessing

PREPROCESSING = Preprocessing(height=8, width=10, mean=(0.5, 0.25, 0.75))
FILL = (128, 64, 191)
PLAIN = ViewConfig(padding=0, flip=False, autoaugment=False, cutout=0)


def make_pixels(height: int = 8, width: int = 10) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(1, 256, (height, width, 3), dtype=np.uint8)


def draw(config: ViewConfig, kind: str, n: int = 400) -> list[NDArray[np.uint8]]:
    images = ArrayImageSet(make_pixels()[None], np.zeros(1, np.int64))
    views = Views(config, PREPROCESSING)
    return [getattr(views, kind)(images, 0, np.random.default_rng(seed)) for seed in range(n)]


@pytest.mark.parametrize("padding", [0, 1, 4, 9, 20])
def test_padded_crop_equals_pad_then_crop(padding: int) -> None:
    pixels = make_pixels()
    padded = np.pad(pixels, ((padding, padding), (padding, padding), (0, 0)))
    for top in range(2 * padding + 1):
        for left in range(2 * padding + 1):
            expected = padded[top : top + 8, left : left + 10]
            np.testing.assert_array_equal(padded_crop(pixels, top, left, padding), expected)


def test_every_padded_crop_occurs_about_equally_often() -> None:
    pixels = make_pixels()
    crops = [padded_crop(pixels, top, left, 1).tobytes() for top in range(3) for left in range(3)]
    seen = [view.tobytes() for view in draw(ViewConfig(padding=1, flip=False), "weak", 1800)]
    counts = [seen.count(crop) for crop in crops]
    assert sum(counts) == 1800
    assert all(abs(count - 200) < 4 * np.sqrt(1800 * 1 / 9 * 8 / 9) for count in counts)


def test_half_of_the_views_are_mirrored_and_none_without_flip() -> None:
    pixels = make_pixels()
    views = draw(ViewConfig(padding=0), "weak")
    mirrored = sum(np.array_equal(view, pixels[:, ::-1]) for view in views)
    assert sum(np.array_equal(view, pixels) for view in views) == 400 - mirrored
    assert 160 < mirrored < 240
    assert all(np.array_equal(view, pixels) for view in draw(PLAIN, "strong"))


def test_cutout_hides_a_square_that_may_reach_over_the_edge() -> None:
    pixels = make_pixels()
    for row, column in ((4, 5), (0, 0), (7, 9), (0, 9)):
        hidden = np.zeros((8, 10), bool)
        for y in range(8):
            for x in range(10):
                hidden[y, x] = row - 2 <= y < row + 2 and column - 2 <= x < column + 2
        result = cutout(pixels, row, column, 4, FILL)
        assert (result[hidden] == FILL).all()
        np.testing.assert_array_equal(result[~hidden], pixels[~hidden])
    assert not (pixels == FILL).all(axis=-1).any()


def test_strong_view_hides_with_the_mean_colour_at_every_place() -> None:
    config = ViewConfig(padding=0, flip=False, autoaugment=False, cutout=3)
    hidden = np.zeros((8, 10))
    for view in draw(config, "strong", 800):
        hidden += (view == FILL).all(axis=-1)
    assert (hidden[1:-1, 1:-1] > 40).all()
    assert (hidden > 15).all()


def test_autoaugment_is_in_the_strong_view_only() -> None:
    config = ViewConfig(padding=0, flip=False, autoaugment=True, cutout=0)
    pixels = make_pixels()
    assert all(np.array_equal(view, pixels) for view in draw(config, "weak"))
    assert 0.5 < np.mean([not np.array_equal(view, pixels) for view in draw(config, "strong")]) < 0.95


def test_the_policy_is_the_one_that_is_named() -> None:
    """Of the two policies only CIFAR-10's moves an image, so that the fill comes in from a whole side."""
    config = ViewConfig(padding=0, flip=False, autoaugment=True, cutout=0)
    moved = {}
    for policy in ("cifar10", "imagenet"):
        views = draw(replace(config, policy=policy), "strong", 200)
        moved[policy] = sum((view[0] == FILL).all() or (view[-1] == FILL).all() for view in views)
    assert moved["cifar10"] > 10
    assert moved["imagenet"] == 0


def cut(
    pixels: NDArray[np.uint8], size: tuple[int, int], rng: np.random.Generator, min_area: float
) -> NDArray[np.uint8]:
    images = ArrayImageSet(pixels[None], np.zeros(1, np.int64))
    (view,) = images.parts(0, [lambda width, height: random_box(width, height, rng, min_area)], size)
    return view


def test_resized_crop_stays_inside_and_keeps_at_least_the_minimal_area() -> None:
    # Red counts columns and green counts rows, so that a crop's corners tell where it was cut.
    ramp = np.zeros((200, 240, 3), np.uint8)
    ramp[..., 0] = np.arange(240)
    ramp[..., 1] = np.arange(200)[:, None]
    areas = []
    for seed in range(300):
        view = cut(ramp, (50, 60), np.random.default_rng(seed), 0.25)
        assert view.shape == (50, 60, 3)
        width = (float(view[0, -1, 0]) - float(view[0, 0, 0])) * 60 / 59
        height = (float(view[-1, 0, 1]) - float(view[0, 0, 1])) * 50 / 49
        areas.append(width * height / (200 * 240))
        assert 0.6 < width / height < 1.6
    assert min(areas) > 0.22
    assert max(areas) > 0.9
    assert 0.5 < np.mean(areas) < 0.7


def test_resized_crop_of_a_single_pixel() -> None:
    view = cut(np.asarray([[[9, 8, 7]]], np.uint8), (4, 4), np.random.default_rng(0), 0.1)
    assert (view == (9, 8, 7)).all()


@pytest.mark.parametrize(
    "wrong",
    [{"crop": "center"}, {"padding": -1}, {"cutout": -1}, {"min_area": 0.0}, {"min_area": 1.5}],
)
def test_impossible_views_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must"):
        ViewConfig(**wrong)  # type: ignore[arg-type]
