"""Small ICC profiles (version 2), written by hand, whose conversions are known."""

from __future__ import annotations

import struct

import numpy as np

WHITE_D50 = (0.9642, 1.0, 0.8249)
# Colorants of linear RGB as columns of XYZ, adapted to D50.
SRGB_TO_XYZ = np.array(
    [[0.4360747, 0.3850649, 0.1430804], [0.2225045, 0.7168786, 0.0606169], [0.0139322, 0.0971045, 0.7141733]]
)
DISPLAY_P3_TO_XYZ = np.array([[0.51512, 0.29198, 0.15710], [0.24120, 0.69225, 0.06657], [-0.00105, 0.04189, 0.78407]])


def rgb_profile(to_xyz: np.ndarray, gamma: float) -> bytes:
    """A display with these primaries and one gamma."""
    columns = {name: _xyz(to_xyz[:, index]) for index, name in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))}
    curves = dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), _gamma(gamma))
    return _profile(b"mntr", b"RGB ", b"XYZ ", {**columns, **curves})


def grey_profile(gamma: float) -> bytes:
    """A grey display of this gamma."""
    return _profile(b"mntr", b"GRAY", b"XYZ ", {b"kTRC": _gamma(gamma)})


def ink_profile(cyan_lab: tuple[int, int, int]) -> bytes:
    """A press on whose white paper all inks are black, but for cyan alone: CIELAB, 8 bits each (L 255 is 100)."""
    table = np.zeros((2, 2, 2, 2, 3), np.uint8)
    table[...] = (0, 128, 128)
    table[0, 0, 0, 0] = (255, 128, 128)
    table[1, 0, 0, 0] = cyan_lab
    ramp = bytes(range(256))
    identity = struct.pack(">9i", *(65536 * np.eye(3, dtype=int)).ravel())
    lookup = b"mft1" + bytes(4) + bytes((4, 3, 2, 0)) + identity + ramp * 4 + table.tobytes() + ramp * 3
    return _profile(b"prtr", b"CMYK", b"Lab ", {b"A2B0": lookup})


def to_srgb(pixels: np.ndarray, to_xyz: np.ndarray, gamma: float) -> np.ndarray:
    """What sRGB pixels (..., 3) look like those of such a display, in float64: the conversion written out."""
    linear = (pixels / 255.0) ** gamma
    srgb = np.clip(linear @ to_xyz.T @ np.linalg.inv(SRGB_TO_XYZ).T, 0, 1)
    return 255.0 * np.where(srgb <= 0.0031308, 12.92 * srgb, 1.055 * srgb ** (1 / 2.4) - 0.055)


def _profile(kind: bytes, space: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    text = b"test\0"
    description = b"desc" + bytes(4) + struct.pack(">I", len(text)) + text + bytes(78)
    tags = {b"desc": description, b"wtpt": _xyz(np.array(WHITE_D50)), **tags}
    offset, table, body = 128 + 4 + 12 * len(tags), b"", b""
    for name, content in tags.items():
        table += name + struct.pack(">II", offset + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    body = struct.pack(">I", len(tags)) + table + body
    header = struct.pack(">I4xI", 128 + len(body), 0x02400000) + kind + space + connection
    header += struct.pack(">6H", 2020, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + _fixed(WHITE_D50)
    return header.ljust(128, b"\0") + body


def _xyz(values: np.ndarray) -> bytes:
    return b"XYZ " + bytes(4) + _fixed(values)


def _gamma(gamma: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">IH2x", 1, round(gamma * 256))


def _fixed(values: object) -> bytes:
    return struct.pack(">3i", *(round(float(value) * 65536) for value in values))  # type: ignore[attr-defined]
