"""PNG files whose pixels end early are refused; black ones are not."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest

from cbn_deploy.errors import CorruptImageError
from cbn_deploy.runtime.preprocessing import decode_image
from tests.hostile_images import png

WIDTH, HEIGHT = 13, 10
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
KINDS = [(0, 1), (0, 2), (0, 8), (0, 16), (2, 8), (2, 16), (3, 1), (3, 4), (3, 8), (4, 8), (4, 16), (6, 8), (6, 16)]


def rows(colour: int, depth: int, interlace: int, value: int) -> list[bytes]:
    """The lines of an image all of whose bytes have one value, as the file has them before packing."""
    passes = ADAM7 if interlace else ((0, 0, 1, 1),)
    lines = []
    for x, y, dx, dy in passes:
        columns, count = len(range(x, WIDTH, dx)), len(range(y, HEIGHT, dy))
        if columns:
            lines += [b"\0" + bytes([value]) * ((columns * depth * CHANNELS[colour] + 7) // 8)] * count
    return lines


def file_of(colour: int, depth: int, interlace: int, lines: list[bytes], pieces: int = 1) -> bytes:
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, depth, colour, 0, 0, interlace)
    packed = zlib.compress(b"".join(lines))
    step = -(-len(packed) // pieces)
    data = [(b"IDAT", packed[start : start + step]) for start in range(0, len(packed), step)]
    palette = [(b"PLTE", bytes(range(48)) + bytes(48))] if colour == 3 else []
    return png((b"IHDR", header), *palette, *data, (b"IEND", b""))


@pytest.mark.parametrize("interlace", [0, 1])
@pytest.mark.parametrize(("colour", "depth"), KINDS)
def test_every_kind_of_pixels(colour: int, depth: int, interlace: int) -> None:
    for value in (0, 0x11):
        lines = rows(colour, depth, interlace, value)
        for pieces in (1, 3):
            image = decode_image(file_of(colour, depth, interlace, lines, pieces))
            assert image.size == (WIDTH, HEIGHT)
            assert len(np.unique(np.asarray(image).reshape(-1, 3), axis=0)) <= 2
        for kept in (len(lines) - 1, len(lines) // 2, 1):
            with pytest.raises(CorruptImageError, match="truncated or damaged"):
                decode_image(file_of(colour, depth, interlace, lines[:kept]))


def test_more_data_than_pixels_do_no_harm() -> None:
    lines = rows(2, 8, 0, 0)
    assert decode_image(file_of(2, 8, 0, [*lines, *lines])).size == (WIDTH, HEIGHT)
