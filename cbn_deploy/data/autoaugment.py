"""AutoAugment's policies for CIFAR-10 and ImageNet (Cubuk et al. 2019), drawn anew for every image."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageEnhance

__all__ = [
    "CIFAR10_POLICY",
    "IMAGENET_POLICY",
    "OPERATIONS",
    "POLICIES",
    "Fill",
    "SubPolicy",
    "autoaugment",
    "enhancement_factor",
]

Fill = tuple[int, int, int]
SubPolicy = tuple[tuple[str, float, int], tuple[str, float, int]]

# (operation, probability, magnitude 0..9), twice: the 25 sub-policies of the paper's Table 7, in its order.
CIFAR10_POLICY: tuple[SubPolicy, ...] = (
    (("invert", 0.1, 7), ("contrast", 0.2, 6)),
    (("rotate", 0.7, 2), ("translate_x", 0.3, 9)),
    (("sharpness", 0.8, 1), ("sharpness", 0.9, 3)),
    (("shear_y", 0.5, 8), ("translate_y", 0.7, 9)),
    (("autocontrast", 0.5, 8), ("equalize", 0.9, 2)),
    (("shear_y", 0.2, 7), ("posterize", 0.3, 7)),
    (("color", 0.4, 3), ("brightness", 0.6, 7)),
    (("sharpness", 0.3, 9), ("brightness", 0.7, 9)),
    (("equalize", 0.6, 5), ("equalize", 0.5, 1)),
    (("contrast", 0.6, 7), ("sharpness", 0.6, 5)),
    (("color", 0.7, 7), ("translate_x", 0.5, 8)),
    (("equalize", 0.3, 7), ("autocontrast", 0.4, 8)),
    (("translate_y", 0.4, 3), ("sharpness", 0.2, 6)),
    (("brightness", 0.9, 6), ("color", 0.2, 8)),
    (("solarize", 0.5, 2), ("invert", 0.0, 3)),
    (("equalize", 0.2, 0), ("autocontrast", 0.6, 0)),
    (("equalize", 0.2, 8), ("equalize", 0.6, 4)),
    (("color", 0.9, 9), ("equalize", 0.6, 6)),
    (("autocontrast", 0.8, 4), ("solarize", 0.2, 8)),
    (("brightness", 0.1, 3), ("color", 0.7, 0)),
    (("solarize", 0.4, 5), ("autocontrast", 0.9, 3)),
    (("translate_y", 0.9, 9), ("translate_y", 0.7, 9)),
    (("autocontrast", 0.9, 2), ("solarize", 0.8, 3)),
    (("equalize", 0.8, 8), ("invert", 0.1, 3)),
    (("translate_y", 0.7, 9), ("autocontrast", 0.9, 1)),
)

# Table 9.
IMAGENET_POLICY: tuple[SubPolicy, ...] = (
    (("posterize", 0.4, 8), ("rotate", 0.6, 9)),
    (("solarize", 0.6, 5), ("autocontrast", 0.6, 5)),
    (("equalize", 0.8, 8), ("equalize", 0.6, 3)),
    (("posterize", 0.6, 7), ("posterize", 0.6, 6)),
    (("equalize", 0.4, 7), ("solarize", 0.2, 4)),
    (("equalize", 0.4, 4), ("rotate", 0.8, 8)),
    (("solarize", 0.6, 3), ("equalize", 0.6, 7)),
    (("posterize", 0.8, 5), ("equalize", 1.0, 2)),
    (("rotate", 0.2, 3), ("solarize", 0.6, 8)),
    (("equalize", 0.6, 8), ("posterize", 0.4, 6)),
    (("rotate", 0.8, 8), ("color", 0.4, 0)),
    (("rotate", 0.4, 9), ("equalize", 0.6, 2)),
    (("equalize", 0.0, 7), ("equalize", 0.8, 8)),
    (("invert", 0.6, 4), ("equalize", 1.0, 8)),
    (("color", 0.6, 4), ("contrast", 1.0, 8)),
    (("rotate", 0.8, 8), ("color", 1.0, 2)),
    (("color", 0.8, 8), ("solarize", 0.8, 7)),
    (("sharpness", 0.4, 7), ("invert", 0.6, 8)),
    (("shear_x", 0.6, 5), ("equalize", 1.0, 9)),
    (("color", 0.4, 0), ("equalize", 0.6, 3)),
    (("equalize", 0.4, 7), ("solarize", 0.2, 4)),
    (("solarize", 0.6, 5), ("autocontrast", 0.6, 5)),
    (("invert", 0.6, 4), ("equalize", 1.0, 8)),
    (("color", 0.6, 4), ("contrast", 1.0, 8)),
    (("equalize", 0.8, 8), ("equalize", 0.6, 3)),
)

POLICIES: Mapping[str, tuple[SubPolicy, ...]] = MappingProxyType(
    {"cifar10": CIFAR10_POLICY, "imagenet": IMAGENET_POLICY}
)
"""By the name that a view's settings give."""

_LEVELS: NDArray[np.int64] = np.arange(256)
_CHANNELS = np.arange(3)
_NEAREST = Image.Resampling.NEAREST
_AFFINE = Image.Transform.AFFINE


def _shear_x(image: Image.Image, level: float, fill: Fill) -> Image.Image:
    return image.transform(image.size, _AFFINE, (1, 0.3 * level, 0, 0, 1, 0), _NEAREST, fillcolor=fill)


def _shear_y(image: Image.Image, level: float, fill: Fill) -> Image.Image:
    return image.transform(image.size, _AFFINE, (1, 0, 0, 0.3 * level, 1, 0), _NEAREST, fillcolor=fill)


def _translate_x(image: Image.Image, level: float, fill: Fill) -> Image.Image:
    shift = int(150 / 331 * image.width * level)
    return image.transform(image.size, _AFFINE, (1, 0, -shift, 0, 1, 0), _NEAREST, fillcolor=fill)


def _translate_y(image: Image.Image, level: float, fill: Fill) -> Image.Image:
    shift = int(150 / 331 * image.height * level)
    return image.transform(image.size, _AFFINE, (1, 0, 0, 0, 1, -shift), _NEAREST, fillcolor=fill)


def _rotate(image: Image.Image, level: float, fill: Fill) -> Image.Image:
    return image.rotate(30 * level, _NEAREST, fillcolor=fill)


def enhancement_factor(level: float) -> float:
    """By how much color, contrast, brightness and sharpness at ``level`` enhance; 1 changes nothing."""
    return 1 + 0.9 * level


def _brightness(image: Image.Image, level: float, _: Fill) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(enhancement_factor(level))


def _color(image: Image.Image, level: float, _: Fill) -> Image.Image:
    return ImageEnhance.Color(image).enhance(enhancement_factor(level))


def _contrast(image: Image.Image, level: float, _: Fill) -> Image.Image:
    return ImageEnhance.Contrast(image).enhance(enhancement_factor(level))


def _sharpness(image: Image.Image, level: float, _: Fill) -> Image.Image:
    return ImageEnhance.Sharpness(image).enhance(enhancement_factor(level))


def _posterize(image: Image.Image, level: float, _: Fill) -> Image.Image:
    return _looked_up(image, _LEVELS & ~(2 ** round(4 * abs(level)) - 1))


def _solarize(image: Image.Image, level: float, _: Fill) -> Image.Image:
    return _looked_up(image, np.where(round(255 * (1 - abs(level))) > _LEVELS, _LEVELS, 255 - _LEVELS))


def _autocontrast(image: Image.Image, _: float, __: Fill) -> Image.Image:
    low, high = np.asarray(image.getextrema(), dtype=np.float64).T[..., None]
    scale = 255.0 / np.maximum(high - low, 1)
    # Truncated towards zero, as Pillow does it.
    stretched = (_LEVELS * scale + -low * scale).astype(np.int64).clip(0, 255)
    return _looked_up(image, np.where(high > low, stretched, _LEVELS))


def _equalize(image: Image.Image, _: float, __: Fill) -> Image.Image:
    counts = np.asarray(image.histogram()).reshape(3, 256)
    up_to = counts.cumsum(axis=1)
    # All but the brightest level's pixels.
    step = (up_to - counts)[_CHANNELS, 255 - (counts[:, ::-1] > 0).argmax(axis=1)][:, None] // 255
    flattened = ((up_to - counts + step // 2) // np.maximum(step, 1)).clip(0, 255)
    return _looked_up(image, np.where(step > 0, flattened, _LEVELS))


def _invert(image: Image.Image, _: float, __: Fill) -> Image.Image:
    return ImageChops.invert(image)


def _looked_up(image: Image.Image, table: NDArray[np.int64]) -> Image.Image:
    """Every value replaced by its entry in one table (256,), or in its channel's (3, 256).

    Pillow's ImageOps fill and round such tables entry by entry in Python, which takes most of a small image's time.
    """
    pixels = np.asarray(image)
    entries = table.astype(np.uint8)
    return Image.fromarray(entries[pixels] if entries.ndim == 1 else entries[_CHANNELS, pixels])


Operation = Callable[[Image.Image, float, Fill], Image.Image]

OPERATIONS: Mapping[str, Operation] = MappingProxyType(
    {
        "shear_x": _shear_x,
        "shear_y": _shear_y,
        "translate_x": _translate_x,
        "translate_y": _translate_y,
        "rotate": _rotate,
        "brightness": _brightness,
        "color": _color,
        "contrast": _contrast,
        "sharpness": _sharpness,
        "posterize": _posterize,
        "solarize": _solarize,
        "autocontrast": _autocontrast,
        "equalize": _equalize,
        "invert": _invert,
    }
)
"""Name -> (RGB image, level in [-1, 1], fill colour) -> RGB image; the paper's Table 6 gives the ranges:
shear 0.3, translate 150/331 of the side, rotate 30 degrees (level > 0 is counter-clockwise), enhancement factors
0.1 ... 1.9, posterize 8 ... 4 bits, solarize threshold 255 ... 0. Posterize and solarize ignore the level's sign."""


def autoaugment(
    image: Image.Image, rng: np.random.Generator, fill: Fill, policy: tuple[SubPolicy, ...] = CIFAR10_POLICY
) -> Image.Image:
    """Apply one random sub-policy; geometric and enhancing operations take a random sign.

    Args:
        image: RGB.
        rng: the image's own generator; five numbers are drawn, whatever they turn out to be.
        fill: colour of what moves in from outside.
        policy: the sub-policies to draw from.
    """
    choice, *uniforms = rng.random(5).tolist()
    sub_policy = policy[int(choice * len(policy))]
    for (name, probability, magnitude), chance, sign in zip(sub_policy, uniforms[:2], uniforms[2:], strict=True):
        if chance < probability:
            level = magnitude / 9 if sign < 0.5 else -magnitude / 9
            image = OPERATIONS[name](image, level, fill)
    return image
