"""What a decoded image looks like: orientation, transparency, depth, inks and colour profiles, by their definitions."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image, ImageOps

from cbn_deploy.runtime.preprocessing import decode_image
from tests.hostile_images import encode
from tests.icc_profiles import DISPLAY_P3_TO_XYZ, SRGB_TO_XYZ, grey_profile, ink_profile, rgb_profile, to_srgb

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8)
IMAGE = Image.fromarray(PIXELS)


def decoded(image: Image.Image, kind: str = "PNG", **options: object) -> np.ndarray:
    return np.asarray(decode_image(encode(image, kind, **options)), dtype=int)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_every_exif_orientation(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encode(IMAGE, kind, exif=exif, lossless=True)
    # Row 0 and column 0 of the stored pixels are these edges of the picture (EXIF 2.32, 4.6.4).
    row, column = {
        1: ("top", "left"),
        2: ("top", "right"),
        3: ("bottom", "right"),
        4: ("bottom", "left"),
        5: ("left", "top"),
        6: ("right", "top"),
        7: ("right", "bottom"),
        8: ("left", "bottom"),
    }[orientation]
    picture = PIXELS if row in ("top", "bottom") else PIXELS.transpose(1, 0, 2)
    if "bottom" in (row, column):
        picture = picture[::-1]
    if "right" in (row, column):
        picture = picture[:, ::-1]
    assert_array_equal(np.asarray(decode_image(content)), picture)
    assert_array_equal(picture, np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content)))))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_white_paper(mode: str) -> None:
    alpha = np.random.default_rng(1).integers(0, 256, PIXELS.shape[:2], dtype=np.uint8)
    colour = PIXELS if mode == "RGBA" else PIXELS[..., :1].repeat(3, -1)
    image = Image.fromarray(np.dstack([PIXELS if mode == "RGBA" else PIXELS[..., 0], alpha]))
    weight = alpha[..., None] / 255.0
    expected = weight * colour + (1 - weight) * 255
    assert np.abs(decoded(image) - expected).max() <= 1


def test_transparency_of_palettes_and_of_single_values() -> None:
    palette = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3), "P")
    palette.putpalette([value for index in range(6) for value in (index * 40, 0, 200 - index * 40)])
    expected = np.array([[[index * 40, 0, 200 - index * 40] for index in row] for row in ((0, 1, 2), (3, 4, 5))])
    assert_array_equal(decoded(palette), expected)
    expected[0, 2] = 255
    assert_array_equal(decoded(palette, transparency=2), expected)
    half = bytes([255, 255, 255, 255, 255, 128])
    expected[0, 2] = (80, 0, 120)
    expected[1, 2] = np.rint(128 / 255 * expected[1, 2] + 127 / 255 * 255)
    assert np.abs(decoded(palette, transparency=half) - expected).max() <= 1
    grey = Image.fromarray(np.array([[0, 7, 9]], np.uint8))
    assert_array_equal(decoded(grey, transparency=7)[0, :, 0], [0, 255, 9])
    assert_array_equal(decoded(IMAGE, transparency=tuple(map(int, PIXELS[0, 0])))[0, :2], [[255] * 3, PIXELS[0, 1]])
    assert_array_equal(decoded(Image.fromarray(np.array([[False, True]])))[0, :, 0], [0, 255])


def test_sixteen_bit_greys() -> None:
    values = np.array([[0, 128, 129, 257, 30_000, 65_535]], np.uint16)
    image = Image.fromarray(values)
    assert_array_equal(decoded(image)[0, :, 0], np.rint(values[0] / 257))
    content = encode(image, "PNG")
    header_end = 8 + 25
    transparent = struct.pack(">I", 2) + b"tRNS" + struct.pack(">H", 257)
    transparent += struct.pack(">I", zlib.crc32(transparent[4:]))
    marked = np.asarray(decode_image(content[:header_end] + transparent + content[header_end:]))
    assert_array_equal(marked[0, :, 0], [0, 0, 1, 255, 117, 255])


def without_adobe_marker(content: bytes) -> bytes:
    start = content.index(b"\xff\xee")
    (length,) = struct.unpack(">H", content[start + 2 : start + 4])
    return content[:start] + content[start + 2 + length :]


def test_inks_as_adobe_stores_them_and_as_the_standard_says() -> None:
    cyan = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    content = encode(cyan, "JPEG", quality=95)
    assert_array_equal(np.asarray(decode_image(content))[4, 4], (0, 255, 255))
    # Pillow wrote inverted values. Without the marker that says so they mean what they say: no cyan, all others full.
    assert_array_equal(np.asarray(decode_image(without_adobe_marker(content)))[4, 4], (0, 0, 0))
    inverted = encode(Image.new("CMYK", (8, 8), (0, 255, 255, 255)), "JPEG", quality=95)
    assert_array_equal(np.asarray(decode_image(without_adobe_marker(inverted)))[4, 4], (0, 255, 255))


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_colours_of_a_wide_display_become_srgb(kind: str) -> None:
    profile = rgb_profile(DISPLAY_P3_TO_XYZ, 2.2)
    actual = decoded(IMAGE, kind, icc_profile=profile, lossless=True)
    expected = to_srgb(PIXELS, DISPLAY_P3_TO_XYZ, 2.2)
    assert np.abs(actual - expected).max() <= 1.5
    assert np.abs(PIXELS - expected).max() > 50, "and that is another image"


def test_colours_and_transparency_together() -> None:
    image = Image.fromarray(np.dstack([PIXELS, np.full(PIXELS.shape[:2], 51, np.uint8)]))
    expected = 0.2 * to_srgb(PIXELS, DISPLAY_P3_TO_XYZ, 2.2) + 0.8 * 255
    actual = decoded(image, icc_profile=rgb_profile(DISPLAY_P3_TO_XYZ, 2.2))
    assert np.abs(actual - expected).max() <= 1.5


def test_grey_displays_and_ink_tables() -> None:
    grey = PIXELS[..., 0]
    expected = to_srgb(grey[..., None].repeat(3, -1), SRGB_TO_XYZ, 1.8)
    assert np.abs(decoded(Image.fromarray(grey), icc_profile=grey_profile(1.8)) - expected).max() <= 2
    cyan = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    # The table says that this cyan is L = 50, a = 60, b = 40: a red, (214, 59, 55) in sRGB.
    actual = decoded(cyan, "JPEG", quality=95, icc_profile=ink_profile((128, 188, 168)))
    assert np.abs(actual[4, 4] - (214, 59, 55)).max() <= 2


def test_a_profile_that_is_srgb_changes_no_pixel() -> None:
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert_array_equal(decoded(IMAGE, icc_profile=profile), PIXELS)


@pytest.mark.parametrize(
    "profile",
    [
        b"\0",
        b"x" * 500,
        rgb_profile(DISPLAY_P3_TO_XYZ, 2.2)[:300],
        grey_profile(1.0),
        ink_profile((0, 0, 0)),
        rgb_profile(DISPLAY_P3_TO_XYZ, 2.2)[:132] + bytes(400),
    ],
    ids=["a zero", "text", "cut", "for greys", "for inks", "zeros behind a header"],
)
def test_a_profile_that_does_not_fit_is_ignored(profile: bytes) -> None:
    assert_array_equal(decoded(IMAGE, icc_profile=profile), PIXELS)


def test_a_profile_beyond_every_real_size_is_ignored() -> None:
    profile = rgb_profile(DISPLAY_P3_TO_XYZ, 2.2) + bytes(4 * 2**20)
    plain = decoded(IMAGE, "WEBP", lossless=True)
    assert_array_equal(decoded(IMAGE, "WEBP", lossless=True, icc_profile=profile), plain)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_exif_that_cannot_be_read_is_ignored(kind: str) -> None:
    plain = decoded(IMAGE, kind)
    for junk in (b"Exif\0\0", b"Exif\0\0II*\0\x08\0\0\0" + b"\xff" * 400, b"Exif\0\0MM\0*\x7f\xff\xff\xff" + b"x" * 9):
        assert_array_equal(decoded(IMAGE, kind, exif=junk), plain)
