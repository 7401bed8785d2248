"""Whether a PNG file holds all its pixels: Pillow leaves those that are missing black and says nothing."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

__all__ = ["holds_all_pixels", "is_interlaced"]

_HEADER = struct.Struct(">IIBBBBB")  # width, height, bit depth, colour type, compression, filter, interlace
_HEADER_AT = 16
_FIRST_CHUNK_AT = 8
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
# Of Adam7 (PNG specification, 8.2): first column and row, and the steps to the next ones.
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_PIECE_BYTES = 2**20


def is_interlaced(content: bytes) -> bool:
    """Whether the pixels of a PNG file, whose header was found acceptable, come in seven passes."""
    return bool(_HEADER.unpack_from(content, _HEADER_AT)[6])


def holds_all_pixels(content: bytes) -> bool:
    """Inflate the image data of a PNG file, whose header was found acceptable, and count them.

    Raises:
        zlib.error: damaged data.
        ValueError: an unknown kind of pixels.
        struct.error: the file ends inside a chunk's head.
    """
    width, height, depth, colour, _, _, interlace = _HEADER.unpack_from(content, _HEADER_AT)
    if colour not in _CHANNELS:
        raise ValueError(f"there is no colour type {colour}")
    bits = depth * _CHANNELS[colour]
    passes = _PASSES if interlace else ((0, 0, 1, 1),)
    sizes = [(-(-(width - x) // dx), -(-(height - y) // dy)) for x, y, dx, dy in passes if width > x and height > y]
    missing: int = sum(rows * (1 + -(-columns * bits // 8)) for columns, rows in sizes)
    inflater = zlib.decompressobj()
    for data in _image_data(content):
        while data and missing > 0 and not inflater.eof:
            missing -= len(inflater.decompress(data, _PIECE_BYTES))
            data = inflater.unconsumed_tail
    return missing <= 0


def _image_data(content: bytes) -> Iterator[bytes]:
    position = _FIRST_CHUNK_AT
    while position < len(content):
        length, kind = struct.unpack_from(">I4s", content, position)
        if kind == b"IEND":
            return
        if kind == b"IDAT":
            yield content[position + 8 : position + 8 + length]
        position += 12 + length
