"""Image files as strangers send them: a corpus of known cases, and an endless stream of damaged ones."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from tests.icc_profiles import DISPLAY_P3_TO_XYZ, grey_profile, ink_profile, rgb_profile

__all__ = ["HostileImage", "corpus", "damaged_images", "encode", "png", "png_header", "run_length_encoded_bmp"]

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class HostileImage:
    """A file, what is wrong or unusual about it, and the HTTP statuses that are right answers to it."""

    name: str
    content: bytes
    statuses: tuple[int, ...]


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    """The image as a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG file of these chunks, with right lengths and checksums."""
    return _PNG_SIGNATURE + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


def png_header(width: int, height: int, depth: int = 8, colour_type: int = 2) -> tuple[bytes, bytes]:
    """The chunk that promises these pixels."""
    return b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)


def corpus() -> list[HostileImage]:
    """Every known case. The statuses hold for the server's default limits."""
    ok, refused = (200,), (413, 415, 422)
    cases: list[tuple[str, bytes, tuple[int, ...]]] = [
        *((name, content, ok) for name, content in _unusual()),
        *((name, content, ok) for name, content in _bad_metadata()),
        *((name, content, refused) for name, content in _lies()),
        *((name, content, (413,)) for name, content in _bombs()),
        *((name, content, (415,)) for name, content in _other_formats()),
        ("BMP of 40 megapixels in run-length code", run_length_encoded_bmp(39_999_999), (415,)),
    ]
    for kind in ("PNG", "JPEG", "WEBP", "BMP"):
        whole = encode(_noise(), kind)
        cases += [
            (f"{kind} cut at {share:.0%}", whole[: int(len(whole) * share)], refused) for share in (0.01, 0.3, 0.9)
        ]
    return [HostileImage(*case) for case in cases]


def damaged_images(seed: int) -> Iterator[bytes]:
    """Endless: real files with bits flipped, parts cut, moved, repeated or replaced, and noise with an honest start."""
    source = random.Random(seed)
    files = [image.content for image in corpus() if 64 < len(image.content) < 20_000]
    while True:
        content = bytearray(source.choice(files))
        for _ in range(source.choice((1, 1, 2, 4, 16))):
            source.choice(_DAMAGES)(content, source)
        yield bytes(content)


def _noise(width: int = 40, height: int = 30) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def _photo(width: int = 40, height: int = 30) -> Image.Image:
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 255 - x], -1).astype(np.uint8))


def _unusual() -> Iterator[tuple[str, bytes]]:
    """Valid files that naive decoders get wrong."""
    photo = _photo()
    for mode in ("1", "L", "LA", "P", "RGBA", "I;16"):
        yield (
            f"PNG mode {mode}",
            encode(photo.convert("L").convert(mode) if mode == "I;16" else photo.convert(mode), "PNG"),
        )
    yield "PNG palette with transparency", encode(photo.quantize(16), "PNG", transparency=3)
    yield "PNG grey with a transparent value", encode(photo.convert("L"), "PNG", transparency=7)
    for mode in ("L", "CMYK"):
        yield f"JPEG mode {mode}", encode(photo.convert(mode), "JPEG")
    yield "JPEG progressive", encode(photo, "JPEG", progressive=True)
    yield "WebP lossless with alpha", encode(photo.convert("RGBA"), "WEBP", lossless=True)
    for mode in ("1", "L", "P"):
        yield f"BMP mode {mode}", encode(photo.convert(mode), "BMP")
    frames = [photo.rotate(90 * turn) for turn in range(3)]
    for kind in ("PNG", "WEBP", "MPO"):
        yield f"{kind} of three frames", encode(photo, kind, save_all=True, append_images=frames)
    yield "JPEG in Display P3", encode(photo, "JPEG", icc_profile=rgb_profile(DISPLAY_P3_TO_XYZ, 2.2))
    yield "PNG in linear grey", encode(photo.convert("L"), "PNG", icc_profile=grey_profile(1.0))
    yield "JPEG with an ink profile", encode(photo.convert("CMYK"), "JPEG", icc_profile=ink_profile((127, 188, 168)))
    yield "one pixel", encode(Image.new("RGB", (1, 1), "red"), "PNG")
    yield "a line", encode(Image.new("RGB", (1, 2000), "red"), "PNG")


def _bad_metadata() -> Iterator[tuple[str, bytes]]:
    """Whole pictures with metadata that must not matter."""
    photo, source = _photo(), random.Random(0)
    profile = rgb_profile(DISPLAY_P3_TO_XYZ, 2.2)
    profiles = {
        "empty": b"\0",
        "cut": profile[:200],
        "noise": source.randbytes(500),
        "noise behind a header": profile[:132] + source.randbytes(len(profile) - 132),
        "for ink": ink_profile((0, 0, 0)),
        "for grey": grey_profile(2.2),
        "of 60 kB of zeros": profile + bytes(60_000),
    }
    for name, content in profiles.items():
        for kind in ("PNG", "JPEG", "WEBP"):
            yield f"{kind} with a profile {name}", encode(photo, kind, icc_profile=content)
    exif = Image.Exif()
    exif[0x0112] = 77
    junk = {
        "an impossible orientation": exif.tobytes(),
        "no EXIF": b"Exif\0\0",
        "EXIF noise": b"Exif\0\0" + source.randbytes(300),
    }
    junk["an endless EXIF"] = b"Exif\0\0II*\0\x08\0\0\0" + b"\xff\xff" * 200
    junk["an EXIF that points outside"] = b"Exif\0\0II*\0\xff\xff\xff\x7f"
    junk["an orientation of text"] = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x03\0\0\0abc\0\0\0\0\0"
    for name, content in junk.items():
        for kind in ("PNG", "JPEG", "WEBP"):
            yield f"{kind} with {name}", encode(photo, kind, exif=content)


def _lies() -> Iterator[tuple[str, bytes]]:
    """Headers that promise what does not follow."""
    data, end = (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b"")
    yield "nothing", b""
    yield "a byte", b"\xff"
    yield "zeros", bytes(5000)
    yield "PNG of 64 x 64 without pixels", png(png_header(64, 64), data, end)
    yield "PNG of no width", png(png_header(0, 10), data, end)
    yield "PNG of depth 3", png(png_header(8, 8, depth=3), data, end)
    yield "PNG without data", png(png_header(8, 8), end)
    yield "PNG of 2 billion frames", png(png_header(8, 8), (b"acTL", struct.pack(">II", 2**31 - 1, 0)), data, end)
    bmp = bytearray(encode(_photo(), "BMP"))
    struct.pack_into("<i", bmp, 18, 30_000)
    yield "BMP wider than its data", bytes(bmp)
    struct.pack_into("<ii", bmp, 18, -5, -5)
    yield "BMP of negative width", bytes(bmp)
    jpeg = bytearray(encode(_photo(), "JPEG"))
    struct.pack_into(">HH", jpeg, jpeg.index(b"\xff\xc0") + 5, 6000, 6000)
    yield "JPEG of 36 megapixels without data", bytes(jpeg)


def run_length_encoded_bmp(width: int, compression: int = 1, bits: int = 8) -> bytes:
    """A line of ``width`` pixels that ends after seven of them: BI_RLE8 (1) of 8 bits, BI_RLE4 (2) of 4."""
    colours, code = bytes(4 * 2**bits), b"\x07\x00\x00\x00\x00\x01"
    start = 54 + len(colours)
    info = struct.pack("<IiiHHIIiiII", 40, width, 1, 1, bits, compression, len(code), 0, 0, 2**bits, 0)
    return b"BM" + struct.pack("<IHHI", start + len(code), 0, 0, start) + info + colours + code


def _bombs() -> Iterator[tuple[str, bytes]]:
    """Few bytes, much work."""
    data, end = (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b"")
    yield "PNG of 100 megapixels", encode(Image.new("1", (10_000, 10_000)), "PNG")
    yield "PNG header of 3.6 gigapixels", png(png_header(60_000, 60_000), data, end)
    yield "PNG header of 4e18 pixels", png(png_header(2**31 - 1, 2**31 - 1), data, end)
    jpeg = encode(_photo(), "JPEG", progressive=True)
    scan = jpeg[jpeg.rindex(b"\xff\xda") : -2]
    yield "JPEG of 2,000 scans", jpeg[:-2] + scan * 2000 + jpeg[-2:]
    yield "PNG of 101 frames", encode(_photo(), "PNG", save_all=True, append_images=[_photo()] * 99 + [_noise()])
    webp = bytearray(encode(_photo(), "WEBP", lossless=True))
    bits = struct.unpack_from("<I", webp, 21)[0] >> 28 << 28
    struct.pack_into("<I", webp, 21, bits | 16382 | 16382 << 14)
    yield "WebP header of 268 megapixels", bytes(webp)


def _other_formats() -> Iterator[tuple[str, bytes]]:
    for kind in ("GIF", "TIFF", "ICO", "TGA", "PPM"):
        yield kind, encode(_photo(), kind)
    yield "SVG", b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'
    yield "text", b"hello, this is not an image"


def _flip_bits(content: bytearray, source: random.Random) -> None:
    if content:
        content[source.randrange(len(content))] ^= 1 << source.randrange(8)


def _set_bytes(content: bytearray, source: random.Random) -> None:
    start = source.randrange(len(content) + 1)
    content[start : start + 4] = source.choice((b"\0" * 4, b"\xff" * 4, b"\x7f\xff\xff\xff", source.randbytes(4)))


def _cut(content: bytearray, source: random.Random) -> None:
    del content[source.randrange(len(content) + 1) :]


def _remove(content: bytearray, source: random.Random) -> None:
    start = source.randrange(len(content) + 1)
    del content[start : start + source.randrange(1, 64)]


def _repeat(content: bytearray, source: random.Random) -> None:
    start, length = source.randrange(len(content) + 1), source.randrange(1, 200)
    content[start:start] = content[start : start + length]


def _fill_with_noise(content: bytearray, source: random.Random) -> None:
    start = source.randrange(len(content) + 1)
    content[start:] = source.randbytes(len(content) - start)


_DAMAGES: list[Callable[[bytearray, random.Random], None]] = [
    _flip_bits,
    _flip_bits,
    _flip_bits,
    _set_bytes,
    _cut,
    _remove,
    _repeat,
    _fill_with_noise,
]
