"""A part of a large JPEG is decoded at a fraction of its size: which part it is and what it shows must not change."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from cbn_deploy.data import FileImageSet, ViewConfig
from cbn_deploy.data.transforms import Views, random_box
from cbn_deploy.errors import DataError
from cbn_deploy.runtime import Preprocessing
from cbn_deploy.runtime.preprocessing import EncodedImage
from tests.reference.tolerances import TOLERANCES

SMALL = Preprocessing(height=16, width=16)
WIDTH, HEIGHT = 640, 480


def photograph() -> Image.Image:
    """Smooth shapes and an edge or two, as photographs have."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    red, green = columns * 255 / WIDTH, rows * 255 / HEIGHT
    blue = 127 + 90 * np.sin(columns / 37) * np.cos(rows / 23) + 30 * ((columns // 160 + rows // 120) % 2)
    return Image.fromarray(np.stack([red, green, blue], axis=-1).clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    image = photograph()
    image.save(folder / "plain.jpg", quality=95)
    image.save(folder / "progressive.jpg", quality=95, progressive=True)
    image.convert("L").save(folder / "grey.jpg", quality=95)
    image.save(folder / "lossless.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: to be turned clockwise
    image.transpose(Image.Transpose.ROTATE_90).save(folder / "turned.jpg", quality=95, exif=exif)
    image.save(folder / "phone.jpg", format="MPO", save_all=True, append_images=[image.resize((160, 120))], quality=95)
    return folder


def part(path: Path, box: tuple[int, int, int, int], size: tuple[int, int]) -> NDArray[np.uint8]:
    seen = []

    def choose(width: int, height: int) -> tuple[int, int, int, int]:
        seen.append((width, height))
        return box

    (pixels,) = FileImageSet([path], np.zeros(1, np.int64), SMALL).parts(0, [choose], size)
    assert seen == [(WIDTH, HEIGHT)]
    assert pixels.shape == (*size, 3)
    return pixels


def in_full(path: Path, box: tuple[int, int, int, int], size: tuple[int, int]) -> NDArray[np.uint8]:
    """The same from the image at its full size."""
    image = EncodedImage(path.read_bytes()).decode()
    return np.asarray(image.resize((size[1], size[0]), Image.Resampling.BILINEAR, box=box))


@pytest.mark.parametrize("name", ["plain.jpg", "progressive.jpg", "turned.jpg", "phone.jpg", "grey.jpg"])
@given(seed=st.integers(0, 2**32 - 1), side=st.sampled_from([16, 32, 48, 64, 100]))
@settings(max_examples=15, deadline=None)
def test_the_part_is_the_one_that_was_chosen(folder: Path, name: str, seed: int, side: int) -> None:
    box = random_box(WIDTH, HEIGHT, np.random.default_rng(seed), 0.1)
    reduced, full = (cut(folder / name, box, (side, side)).astype(np.int64) for cut in (part, in_full))
    assert np.abs(reduced - full).mean() < TOLERANCES["reduced decoding"].atol


@pytest.mark.parametrize("name", ["lossless.png", "plain.jpg"])
def test_without_spare_pixels_nothing_changes(folder: Path, name: str) -> None:
    for box, size in (((3, 5, 400, 300), (200, 250)), ((0, 0, WIDTH, HEIGHT), (HEIGHT, WIDTH)), ((7, 7, 8, 8), (4, 4))):
        np.testing.assert_array_equal(part(folder / name, box, size), in_full(folder / name, box, size))
    if name == "lossless.png":
        box = (0, 0, WIDTH, HEIGHT)
        np.testing.assert_array_equal(part(folder / name, box, (16, 16)), in_full(folder / name, box, (16, 16)))


@pytest.mark.parametrize(("reduction", "size"), [(1, (640, 480)), (2, (320, 240)), (4, (160, 120)), (8, (80, 60))])
def test_a_jpeg_is_decoded_at_a_fraction_of_its_size(folder: Path, reduction: int, size: tuple[int, int]) -> None:
    assert EncodedImage((folder / "plain.jpg").read_bytes()).decode(reduction).size == size
    assert EncodedImage((folder / "turned.jpg").read_bytes()).size == (WIDTH, HEIGHT)
    assert EncodedImage((folder / "turned.jpg").read_bytes()).decode(reduction).size == size
    assert EncodedImage((folder / "lossless.png").read_bytes()).decode(reduction).size == (WIDTH, HEIGHT)


@pytest.mark.parametrize("crop", ["padded", "resized"])
def test_two_views_of_one_decoding_are_the_views_by_themselves(folder: Path, crop: str) -> None:
    images = FileImageSet([folder / "plain.jpg"], np.zeros(1, np.int64), SMALL)
    views = Views(ViewConfig(crop=crop, padding=3, min_area=0.001, cutout=4), SMALL)  # type: ignore[arg-type]
    for seed in range(40):
        strong, weak = views.both(images, 0, np.random.default_rng((1, seed)), np.random.default_rng((2, seed)))
        np.testing.assert_array_equal(strong, views.strong(images, 0, np.random.default_rng((1, seed))))
        np.testing.assert_array_equal(weak, views.weak(images, 0, np.random.default_rng((2, seed))))


def test_a_damaged_file_is_named(folder: Path, tmp_path: Path) -> None:
    content = (folder / "plain.jpg").read_bytes()
    for name, damaged in (("cut.jpg", content[: len(content) // 2]), ("empty.jpg", b""), ("text.jpg", b"no image")):
        (tmp_path / name).write_bytes(damaged)
        images = FileImageSet([tmp_path / name], np.zeros(1, np.int64), SMALL)
        with pytest.raises(DataError, match=rf"{name}: .* Remove it; --check lists every such file"):
            images.parts(0, [lambda width, height: (0, 0, width, height)], (16, 16))
    images = FileImageSet([tmp_path / "nowhere.jpg"], np.zeros(1, np.int64), SMALL)
    with pytest.raises(DataError, match=r"Cannot read .*nowhere.jpg: No such file"):
        images.parts(0, [lambda width, height: (0, 0, width, height)], (16, 16))
