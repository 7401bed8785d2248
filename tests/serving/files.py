"""Image files, good and bad, made of real bytes."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image


def encode(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    """uint8 (H, W, 3) as a file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def colour(red: int, green: int, blue: int, kind: str = "PNG", side: int = 24) -> bytes:
    """A noisy image around one colour."""
    noise = np.random.default_rng(0).integers(-20, 21, size=(side, side, 3))
    return encode(np.clip(noise + np.array([red, green, blue]), 0, 255).astype(np.uint8), kind)


RED = colour(220, 30, 30)
GREEN = colour(30, 220, 30)
BLUE = colour(30, 30, 220)


def bomb_png(width: int, height: int) -> bytes:
    """A PNG whose header promises ``width`` x ``height`` pixels and whose data hold hardly any."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(100))
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
