"""Decoding and preprocessing: what a user expects of every kind of image, and one sentence for the rest."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from numpy.testing import assert_allclose
from PIL import Image

from cbn_deploy.errors import CorruptImageError, ImageTooLargeError, UnsupportedImageError
from cbn_deploy.runtime.description import Preprocessing
from cbn_deploy.runtime.preprocessing import EncodedImage, ImageLimits, decode_image, preprocess, resize, resized_size
from tests.hostile_images import run_length_encoded_bmp


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def gradient(mode: str = "RGB", size: tuple[int, int] = (40, 30)) -> Image.Image:
    x, y = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
    rgb = np.stack([x, y, 255 - x], -1).astype(np.uint8)
    return Image.fromarray(rgb).convert(mode)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "JPEG", "WEBP"])
def test_every_allowed_format(kind: str) -> None:
    image = decode_image(encoded(gradient(), kind))
    assert image.mode == "RGB"
    assert np.abs(np.asarray(image, float) - np.asarray(gradient(), float)).mean() < 4


def test_modes_end_up_as_a_person_sees_them() -> None:
    grey = decode_image(encoded(gradient("L"), "PNG"))
    assert np.array_equal(np.asarray(grey)[..., 0], np.asarray(gradient("L")))
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert np.asarray(decode_image(encoded(clear, "PNG"))).min() == 255, "transparent is white paper"
    half = Image.new("LA", (4, 4), (0, 128))
    assert abs(int(np.asarray(decode_image(encoded(half, "PNG")))[0, 0, 0]) - 127) <= 1
    cmyk = decode_image(encoded(gradient().convert("CMYK"), "JPEG", quality=95))
    assert np.abs(np.asarray(cmyk, float) - np.asarray(gradient(), float)).mean() < 6
    palette = decode_image(encoded(gradient().quantize(64), "PNG"))
    assert np.abs(np.asarray(palette, float) - np.asarray(gradient(), float)).mean() < 12


def test_sixteen_bits_are_scaled_and_not_clipped() -> None:
    values = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    image = decode_image(encoded(Image.fromarray(values), "PNG"))
    assert_allclose(np.asarray(image)[..., 0].reshape(-1), np.arange(256), atol=1)


def test_the_photo_of_a_multi_picture_jpeg() -> None:
    content = encoded(gradient(), "MPO", save_all=True, append_images=[gradient().rotate(180)])
    assert np.abs(np.asarray(decode_image(content), float) - np.asarray(gradient(), float)).mean() < 4


def test_exif_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    image = decode_image(encoded(gradient(size=(40, 20)), "JPEG", exif=exif))
    assert image.size == (20, 40)


def noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))


def png_header(width: int, height: int) -> bytes:
    ihdr = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", ihdr) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


# Pillow itself warns above 89 million pixels; here a warning would be an error before our own limit is reached.
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"", CorruptImageError),
        (b"hello", UnsupportedImageError),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", UnsupportedImageError),
        (encoded(gradient("P"), "GIF"), UnsupportedImageError),
        (encoded(gradient(), "TIFF"), UnsupportedImageError),
        (encoded(noise(), "PNG")[:2000], CorruptImageError),
        (encoded(noise(), "JPEG")[:1200], CorruptImageError),
        (encoded(gradient(), "PNG")[:20], CorruptImageError),
        (encoded(gradient(), "JPEG")[:30], CorruptImageError),
        (encoded(gradient(), "WEBP")[:-1], CorruptImageError),
        (encoded(gradient(), "BMP")[:40], CorruptImageError),
        (b"BMX is a kind of bicycle, and this is text.", UnsupportedImageError),
        (png_header(10_000, 10_000), ImageTooLargeError),
        (png_header(60_000, 60_000), ImageTooLargeError),
        (png_header(64, 64), CorruptImageError),
        (encoded(gradient(), "PNG", save_all=True, append_images=[noise()] * 100), ImageTooLargeError),
    ],
    ids=[
        "empty",
        "text",
        "svg",
        "gif",
        "tiff",
        "cut png",
        "cut jpeg",
        "cut header",
        "cut jpeg header",
        "cut webp",
        "cut bmp header",
        "text like bmp",
        "100 MP",
        "3.6 GP",
        "lying",
        "101 frames",
    ],
)
def test_bad_images(content: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        decode_image(content)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_the_first_frame_of_an_animation(kind: str) -> None:
    frames = [gradient().rotate(90 * turn) for turn in range(1, 4)]
    content = encoded(gradient(), kind, save_all=True, append_images=frames, duration=10)
    assert np.abs(np.asarray(decode_image(content), float) - np.asarray(gradient(), float)).mean() < 4
    with pytest.raises(ImageTooLargeError, match="4 frames; at most 3"):
        decode_image(content, ImageLimits(max_frames=3))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
def test_a_cut_file_is_refused_unless_all_pixels_are_there(kind: str) -> None:
    content = encoded(noise(), kind)
    whole = np.asarray(decode_image(content))
    complete = 0
    for length in {*range(0, len(content), 37), *range(len(content) - 30, len(content))}:
        try:
            image = decode_image(content[:length])
        except (CorruptImageError, UnsupportedImageError):
            continue
        assert np.array_equal(np.asarray(image), whole), f"{length} of {len(content)} bytes"
        complete += 1
    assert complete <= 20, "only checksums and an end marker may be missing"


def test_damaged_pixels_are_noticed_whether_or_not_the_size_was_asked_for_first() -> None:
    content = bytearray(encoded(noise(), "PNG"))
    content[len(content) // 2] ^= 0xFF
    with pytest.raises(CorruptImageError):
        decode_image(bytes(content))
    image = EncodedImage(bytes(content))
    with pytest.raises(CorruptImageError):
        assert image.size


def test_the_size_of_the_upright_image_is_known_before_decoding() -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    for kind in ("PNG", "JPEG", "WEBP"):
        image = EncodedImage(encoded(gradient(size=(40, 20)), kind, exif=exif))
        assert image.size == (20, 40)
        assert image.decode().size == (20, 40)


def test_a_jpeg_cannot_promise_more_pixels_than_its_bytes_can_hold() -> None:
    flat = encoded(Image.new("RGB", (4000, 4000)), "JPEG", quality=1, optimize=True, subsampling=2, progressive=True)
    assert decode_image(flat).size == (4000, 4000)
    header = flat.index(b"\xff\xc2") + 5
    with pytest.raises(CorruptImageError, match="6000 x 6000"):
        decode_image(flat[:header] + struct.pack(">HH", 6000, 6000) + flat[header + 4 :][:60_000])


def test_a_jpeg_of_too_many_scans() -> None:
    content = encoded(gradient(), "JPEG", progressive=True)
    scan = content[content.rindex(b"\xff\xda") : -2]
    assert decode_image(content[:-2] + scan * 100 + content[-2:]).size == gradient().size
    with pytest.raises(ImageTooLargeError, match="more than 500 scans"):
        decode_image(content[:-2] + scan * 500 + content[-2:])


def test_a_large_jpeg_may_have_fewer_scans_than_a_small_one() -> None:
    content = encoded(Image.new("L", (6000, 4000)), "JPEG", progressive=True)
    scans, scan = content.count(b"\xff\xda"), content[content.rindex(b"\xff\xda") : -2]
    assert scans < 20
    EncodedImage(content[:-2] + scan * (33 - scans) + content[-2:])
    with pytest.raises(ImageTooLargeError, match="6000 x 4000 pixels has more than 33 scans"):
        EncodedImage(content[:-2] + scan * (34 - scans) + content[-2:])
    # A camera's own are taken at any size.
    EncodedImage(encoded(Image.new("L", (9000, 9000)), "JPEG", progressive=True), ImageLimits(max_pixels=10**8))


@pytest.mark.parametrize(("compression", "bits"), [(1, 8), (2, 4)])
def test_a_run_length_encoded_bmp_is_refused_by_its_header(compression: int, bits: int) -> None:
    """A line of 40 megapixels in a kilobyte, each pixel painted by Python code."""
    with pytest.raises(UnsupportedImageError, match="run-length encoded; save it as PNG"):
        EncodedImage(run_length_encoded_bmp(39_999_999, compression, bits))


def test_byte_limit() -> None:
    with pytest.raises(ImageTooLargeError, match="at most 10"):
        decode_image(encoded(gradient(), "PNG"), ImageLimits(max_bytes=10))


def test_resize_and_normalise() -> None:
    preprocessing = Preprocessing(height=16, width=12, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    image = Image.new("RGB", (50, 70), (255, 102, 0))
    x = preprocess(image, preprocessing)
    assert x.shape == (3, 16, 12)
    assert x.dtype == np.float32
    assert x.flags.c_contiguous
    assert_allclose(x[:, 3, 3], [(1 - 0.5) / 0.2, (0.4 - 0.4) / 0.3, (0 - 0.3) / 0.4], atol=1e-6)


def test_an_image_of_the_right_size_is_not_resampled() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    assert np.array_equal(resize(Image.fromarray(pixels), Preprocessing(height=32, width=32)), pixels)


def test_the_size_is_known_and_refused_before_anything_is_resized() -> None:
    shorter = Preprocessing(height=48, width=48, resize_shorter=56)
    assert resized_size((300, 100), shorter) == (168, 56)
    assert resized_size((100, 300), shorter) == (56, 168)
    assert resized_size((200_000, 1), Preprocessing(height=16, width=12)) == (12, 16)  # squeezed, which costs little
    with pytest.raises(ImageTooLargeError, match="200000 x 1 pixels, too elongated to be resized; crop it first"):
        resized_size((200_000, 1), shorter)


@pytest.mark.parametrize("size", [(300, 100), (100, 300), (64, 64), (5, 900)])
def test_shorter_edge_then_centre_crop(size: tuple[int, int]) -> None:
    pixels = resize(gradient(size=size), Preprocessing(height=48, width=48, resize_shorter=56))
    assert pixels.shape == (48, 48, 3)
    # The red ramp runs left to right: a centred crop keeps its middle in the middle.
    assert abs(float(pixels[..., 0].mean()) - 127.5) < 12
