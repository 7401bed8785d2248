"""From the bytes of an image to the model's input array: one implementation for training, evaluation and serving."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from cbn_deploy.errors import CorruptImageError, ImageTooLargeError, UnsupportedImageError
from cbn_deploy.runtime.description import Preprocessing

__all__ = ["ALLOWED_FORMATS", "ImageLimits", "decode_image", "normalize", "preprocess", "resize"]

ALLOWED_FORMATS = ("JPEG", "PNG", "WEBP", "BMP")

# A line of a million pixels passes every limit of a header and becomes 256 million when its shorter edge is made 256.
_MAX_RESIZED_PIXELS = 40_000_000

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True, kw_only=True)
class ImageLimits:
    """What :func:`decode_image` accepts: ``max_bytes`` of file, ``max_pixels`` decoded, a single frame."""

    max_bytes: int = 16 * 2**20
    max_pixels: int = 40_000_000


def decode_image(content: bytes, limits: ImageLimits | None = None) -> Image.Image:
    """Decode an image file to RGB, upright (EXIF orientation applied), transparency laid over white.

    The header is checked against ``limits`` before any pixel is decoded, so a decompression bomb costs nothing.

    Raises:
        ImageTooLargeError: more bytes, pixels or frames than allowed.
        UnsupportedImageError: not a JPEG, PNG, WebP or BMP.
        CorruptImageError: an allowed format, but truncated or damaged.
    """
    limits = limits or ImageLimits()
    if len(content) > limits.max_bytes:
        raise ImageTooLargeError(f"The image has {len(content)} bytes; at most {limits.max_bytes} are accepted.")
    if not content:
        raise UnsupportedImageError("The image is empty (0 bytes); send a JPEG, PNG, WebP or BMP file.")
    try:
        image = Image.open(io.BytesIO(content), formats=ALLOWED_FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageTooLargeError(f"The image has more than {limits.max_pixels} pixels; send a smaller one.") from error
    except Exception as error:  # a hostile header can raise nearly anything in a decoder
        raise UnsupportedImageError("The bytes are not a readable JPEG, PNG, WebP or BMP image.") from error
    width, height = image.size
    if width * height > limits.max_pixels:
        raise ImageTooLargeError(
            f"The image has {width} x {height} pixels; at most {limits.max_pixels} in all are accepted."
        )
    frames = getattr(image, "n_frames", 1)
    # Phones write JPEGs with a preview or depth map behind the photo (MPO); the first frame is the photo.
    if frames > 1 and image.format != "MPO":
        raise ImageTooLargeError(f"The image has {frames} frames; send a still image.")
    try:
        image.load()
        return _to_rgb(ImageOps.exif_transpose(image))
    except Exception as error:  # as above: SyntaxError, OSError, struct.error, zlib.error ...
        raise CorruptImageError(f"The {image.format} image is truncated or damaged.") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        # Pillow's own conversion clips 16-bit values at 255; scale them instead.
        values = np.asarray(image, dtype=np.float64)
        image = Image.fromarray((np.clip(values / 257.0, 0, 255) + 0.5).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, rgba)
    return image.convert("RGB")


def resize(image: Image.Image, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Resize (and centre-crop) an RGB image to the model's size: uint8 (height, width, 3).

    Raises:
        ImageTooLargeError: so elongated that resizing its shorter edge would make the other one huge.
    """
    target = (preprocessing.width, preprocessing.height)
    resample = _FILTERS[preprocessing.interpolation]
    if preprocessing.resize_shorter is not None:
        scale = preprocessing.resize_shorter / min(image.size)
        size = (max(round(image.width * scale), target[0]), max(round(image.height * scale), target[1]))
        if size[0] * size[1] > _MAX_RESIZED_PIXELS:
            raise ImageTooLargeError(
                f"The image has {image.width} x {image.height} pixels, too elongated to be resized; crop it first."
            )
        if size != image.size:
            image = image.resize(size, resample)
        left, top = (image.width - target[0]) // 2, (image.height - target[1]) // 2
        image = image.crop((left, top, left + target[0], top + target[1]))
    elif image.size != target:
        image = image.resize(target, resample)
    return np.asarray(image, dtype=np.uint8)


def normalize(pixels: NDArray[np.uint8], preprocessing: Preprocessing) -> NDArray[np.float32]:
    """``(pixels / 255 - mean) / std``, channels first: uint8 (..., H, W, 3) -> float32 (..., 3, H, W)."""
    mean = np.asarray(preprocessing.mean, dtype=np.float32)
    std = np.asarray(preprocessing.std, dtype=np.float32)
    scaled = (pixels.astype(np.float32) / np.float32(255.0) - mean) / std
    return np.ascontiguousarray(np.moveaxis(scaled, -1, -3))


def preprocess(image: Image.Image, preprocessing: Preprocessing) -> NDArray[np.float32]:
    """RGB image -> float32 (3, height, width), ready to be stacked into a batch."""
    return normalize(resize(image, preprocessing), preprocessing)
