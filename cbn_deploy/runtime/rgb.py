"""From a decoded image to what a person sees: 8-bit sRGB, upright, on white paper, whatever the file held."""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageChops, ImageCms

__all__ = ["to_rgb", "upright", "upright_size"]

# The largest profiles in use, tables for printing inks, have some 3 MB.
_MAX_PROFILE_BYTES = 4 * 2**20
_PROFILE_SPACES = {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK"}
_ORIENTATION_TAG = 0x0112
# Orientation of the EXIF standard -> what undoes it.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation; EXIF data that cannot be read are ignored."""
    orientation = _orientation(image)
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of what :func:`upright` gives; a header is enough."""
    lies_on_its_side = _orientation(image) in (5, 6, 7, 8)
    return (image.height, image.width) if lies_on_its_side else (image.width, image.height)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # noqa: BLE001 - cameras and editors write anything; Pillow raises nearly anything for it
        return 1


def to_rgb(image: Image.Image) -> Image.Image:
    """A loaded image of any mode that a JPEG, PNG, WebP or BMP file can have, as mode RGB.

    16-bit greys are scaled, not clipped. Transparency is laid over white. Colours are converted to sRGB if the file has
    an ICC profile that fits its mode; a profile that does not, is broken or larger than 4 MiB is ignored, and so is
    every one where Pillow was built without Little CMS. CMYK without a profile is converted by Pillow's simple formula.
    """
    colour, alpha = _colour_and_alpha(image)
    rgb = _to_srgb(colour, image.info.get("icc_profile"))
    if alpha is None:
        return rgb
    return Image.composite(rgb, Image.new("RGB", rgb.size, "white"), alpha)


def _colour_and_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """The colours in mode L, RGB or CMYK, and the opacity, if there is any, in mode L."""
    if image.mode.startswith("I"):
        return _sixteen_bit_grey(image)
    if image.mode == "CMYK":
        # Pillow takes every CMYK JPEG for one of Adobe's, which are stored inverted. Without Adobe's marker 0 is no ink
        # (ITU-T T.872, 6.1).
        return (image if "adobe" in image.info else ImageChops.invert(image)), None
    grey = image.mode in ("1", "L", "LA", "La")
    if not image.has_transparency_data:
        return _in_mode(image, "L" if grey else "RGB"), None
    rgba = image.convert("RGBA")
    return rgba.convert("RGB").convert("L") if grey else rgba.convert("RGB"), rgba.getchannel("A")


def _sixteen_bit_grey(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Values 0..65535 scaled to 0..255, where Pillow's own conversion would clip them."""
    values = np.asarray(image).clip(0, 65535).astype(np.uint16)
    scale = (np.arange(65536, dtype=np.uint32) * 255 + 32767) // 65535
    grey = Image.fromarray(scale.astype(np.uint8)[values])
    transparent = image.info.get("transparency")
    if not isinstance(transparent, int):
        return grey, None
    return grey, Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8))


def _to_srgb(image: Image.Image, profile: object) -> Image.Image:
    if isinstance(profile, bytes) and 0 < len(profile) <= _MAX_PROFILE_BYTES:
        transform = _transform(profile, image.mode)
        if transform is not None:
            converted = ImageCms.applyTransform(image, transform)
            if converted is not None:
                return converted
    return _in_mode(image, "RGB")


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    return image if image.mode == mode else image.convert(mode)  # which copies even where there is nothing to do


@lru_cache(maxsize=8)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """What takes colours of ``mode`` in ``profile`` to sRGB; ``None`` if nothing useful or nothing at all does."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if source.profile.xcolor_space.strip() != _PROFILE_SPACES[mode]:
            return None
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
        probe = _probe(mode)
        converted = ImageCms.applyTransform(probe, transform)
    except Exception:  # noqa: BLE001 - a stranger's profile: whatever is wrong with it, the image can be shown without
        return None
    # Most profiles in photographs are sRGB itself, and converting a large one takes longer than decoding it.
    return None if converted is None or _largest_difference(probe.convert("RGB"), converted) <= 1 else transform


def _probe(mode: str) -> Image.Image:
    """Colours all over the cube of ``mode``: every combination of five values."""
    bands = len(Image.new(mode, (1, 1)).getbands())
    values = np.stack(np.meshgrid(*[np.array([0, 64, 128, 192, 255], np.uint8)] * bands, indexing="ij"), -1)
    size = (5, 5 ** (bands - 1))
    return Image.frombytes(mode, size, values.tobytes())


def _largest_difference(first: Image.Image, second: Image.Image) -> int:
    return int(np.abs(np.asarray(first, np.int16) - np.asarray(second, np.int16)).max())
