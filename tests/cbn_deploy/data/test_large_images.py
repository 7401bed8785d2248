"""A user's own images may be larger than what a server takes from strangers, up to a bound."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cbn_deploy.data import FileImageSet
from cbn_deploy.data.image_set import OWN_IMAGE_LIMITS, read_image
from cbn_deploy.errors import DataError, ImageTooLargeError
from cbn_deploy.runtime import Preprocessing
from cbn_deploy.runtime.preprocessing import EncodedImage, ImageLimits
from tests.hostile_images import png, png_header

SMALL = Preprocessing(height=16, width=16)
UPLOADS = ImageLimits()


def whole(width: int, height: int) -> tuple[int, int, int, int]:
    return 0, 0, width, height


def promise(width: int, height: int) -> bytes:
    """A PNG of which there is only the header."""
    return png(png_header(width, height), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))


def test_a_large_photograph_is_trained_on_and_evaluated(tmp_path: Path) -> None:
    size = (8256, 5504)
    assert size[0] * size[1] > UPLOADS.max_pixels
    path = tmp_path / "camera.jpg"
    Image.new("L", size, 90).save(path)
    images = FileImageSet([path], np.zeros(1, np.int64), SMALL)
    (part,) = images.parts(0, [whole], (16, 16))
    assert (part == 90).all()
    assert (images.pixels(0) == 90).all()


def test_a_large_file_without_compression_is_read(tmp_path: Path) -> None:
    path = tmp_path / "scan.bmp"
    Image.new("RGB", (2800, 2048), (10, 20, 30)).save(path)
    assert path.stat().st_size > UPLOADS.max_bytes
    assert read_image(path).getpixel((2799, 2047)) == (10, 20, 30)


def test_pillow_does_not_warn_of_what_is_accepted() -> None:
    height = OWN_IMAGE_LIMITS.max_pixels // 5
    assert 5 * height == OWN_IMAGE_LIMITS.max_pixels
    EncodedImage(promise(5, height), OWN_IMAGE_LIMITS)


@pytest.mark.parametrize("used", ["training", "evaluation"])
def test_there_is_a_bound_and_it_says_what_to_do(tmp_path: Path, used: str) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(promise(OWN_IMAGE_LIMITS.max_pixels + 1, 1))
    with pytest.raises(ImageTooLargeError):
        read_image(path)
    images = FileImageSet([path], np.zeros(1, np.int64), SMALL)
    with pytest.raises(DataError, match=r"bomb\.png: The image has .* Resize it; --check lists every such file"):
        images.parts(0, [whole], (16, 16)) if used == "training" else images.pixels(0)
