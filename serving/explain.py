"""Which Gaussian claimed which pixel: a layer's posterior as a small picture.

The colour says which Gaussian has the largest posterior at a pixel, its saturation how sure that is: from nearly grey,
all Gaussians alike, to the pure colour, this one alone. The colours are those of Okabe and Ito (2008), which people
with any common colour vision can tell apart; beyond eight Gaussians they repeat, darker.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["LEVELS", "LayerMap", "colour", "layer_map", "map_size"]

# In an order in which the first four stay apart at any saturation from 0.4 on: by simulation (Machado et al. 2009) at
# least 14 of CIELAB's units for every kind of colour vision. No other four do better, the usual ones have 5.
_OKABE_ITO = (
    (0x00, 0x72, 0xB2),  # blue
    (0xD5, 0x5E, 0x00),  # vermilion
    (0xF0, 0xE4, 0x42),  # yellow
    (0x33, 0x33, 0x33),  # nearly black
    (0x56, 0xB4, 0xE9),  # sky blue
    (0xCC, 0x79, 0xA7),  # reddish purple
    (0xE6, 0x9F, 0x00),  # orange
    (0x00, 0x9E, 0x73),  # bluish green
)
_DARKER = 0.6
_GREY = np.array([225.0, 225.0, 225.0])
_LEAST_SATURATION = 0.12
# Steps of saturation; a palette has 256 entries for Gaussians x steps.
LEVELS = 8
_PALETTE = 256
_MIN_SIDE, _MAX_SIDE = 64, 256


@dataclass(frozen=True, kw_only=True)
class LayerMap:
    """One layer of one image.

    Attributes:
        layer: its name.
        height: rows of the posterior, before the picture was enlarged.
        width: columns likewise.
        png: the picture, a PNG file in base64.
    """

    layer: str
    height: int
    width: int
    png: str


def colour(component: int) -> tuple[int, int, int]:
    """Red, green and blue of a Gaussian at full saturation."""
    darker = _DARKER ** (component // len(_OKABE_ITO))
    red, green, blue = (round(value * darker) for value in _OKABE_ITO[component % len(_OKABE_ITO)])
    return red, green, blue


def map_size(shapes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Height and width that the pictures of layers of these sizes share.

    That of the largest layer, enlarged by a whole factor until a side has 64 pixels, or reduced until none has 257.
    """
    height, width = max(shapes, key=lambda shape: shape[0] * shape[1])
    factor = max(1, -(-_MIN_SIDE // max(height, width)))
    shrink = min(1.0, _MAX_SIDE / (max(height, width) * factor))
    return max(1, round(height * factor * shrink)), max(1, round(width * factor * shrink))


def layer_map(layer: str, posterior: NDArray[np.float32], size: tuple[int, int]) -> LayerMap:
    """The picture of a posterior (M, H, W), every pixel enlarged to a block: ``size`` is (height, width).

    The PNG has a palette: entry ``component * levels + level``, where the level rises with the confidence
    (w_max - 1/M) / (1 - 1/M) and there are 8 levels, or fewer if M is above 32.
    """
    components, height, width = posterior.shape
    rows = np.arange(size[0]) * height // size[0]
    columns = np.arange(size[1]) * width // size[1]
    levels = max(1, min(LEVELS, _PALETTE // components))
    shown = posterior[:_PALETTE][:, rows][:, :, columns]
    winner = shown.argmax(axis=0)
    even = 1.0 / components
    confidence = (shown.max(axis=0) - even) / (1.0 - even) if components > 1 else np.ones(size)
    level = np.clip(np.rint(confidence * (levels - 1)), 0, levels - 1)
    picture = Image.fromarray((winner * levels + level).astype(np.uint8), "P")
    picture.putpalette(_palette(min(components, _PALETTE), levels).tobytes())
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return LayerMap(layer=layer, height=height, width=width, png=base64.b64encode(buffer.getvalue()).decode())


def _palette(components: int, levels: int) -> NDArray[np.uint8]:
    """(components * levels, 3)."""
    saturation = np.linspace(_LEAST_SATURATION, 1.0, levels) if levels > 1 else np.ones(1)
    pure = np.array([colour(component) for component in range(components)], dtype=np.float64)
    shades = _GREY + saturation[None, :, None] * (pure[:, None] - _GREY)
    return np.asarray(np.rint(shades), dtype=np.uint8).reshape(-1, 3)
