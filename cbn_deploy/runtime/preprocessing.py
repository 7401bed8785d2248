"""From the bytes of an image to the model's input array: one implementation for training, evaluation and serving."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cbn_deploy.errors import CorruptImageError, ImageTooLargeError, UnsupportedImageError
from cbn_deploy.runtime.description import Preprocessing
from cbn_deploy.runtime.png import holds_all_pixels, is_interlaced
from cbn_deploy.runtime.rgb import to_rgb, upright, upright_size

__all__ = [
    "ALLOWED_FORMATS",
    "IMAGE_SUFFIXES",
    "EncodedImage",
    "ImageLimits",
    "check_byte_count",
    "decode_image",
    "normalize",
    "preprocess",
    "resize",
    "resized_size",
]

ALLOWED_FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
# Of file names, in lower case.
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})

# A progressive JPEG of a few bytes a scan can make the decoder pass over all its pixels a hundred thousand times, and
# the work is scans times pixels. Real ones have about ten scans; the marker may also occur in metadata and in the
# previews behind a phone's photo. Small images may have more, because it costs nothing.
_ALWAYS_ALLOWED_SCANS = 20
_MAX_SCANS = 500
_MAX_SCANNED_PIXELS = 800_000_000
_START_OF_SCAN = b"\xff\xda"
# A Huffman code has at least one bit, and a JPEG at least one code for every block of 8 x 8 pixels. Without this check
# the decoder paints what is missing grey.
_JPEG_PIXELS_A_BYTE = 8 * 64

# BI_RLE8 and BI_RLE4. Pillow decodes them in Python: a file of a kilobyte can take half a minute. Few people have any.
_RUN_LENGTH_ENCODINGS = (1, 2)

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
    """What :func:`decode_image` accepts: ``max_bytes`` of file, ``max_pixels`` a frame, ``max_frames``."""

    max_bytes: int = 16 * 2**20
    max_pixels: int = 40_000_000
    max_frames: int = 100


def decode_image(content: bytes, limits: ImageLimits | None = None) -> Image.Image:
    """Decode an image file to RGB as a person sees it: see :func:`cbn_deploy.runtime.rgb.to_rgb`.

    The header is checked against ``limits`` before any pixel is decoded, so a decompression bomb costs nothing. Of an
    animation, and of a phone's photo with a preview or depth map behind it, the first frame is the image.

    Large JPEGs are decoded in full. Pillow's draft mode would be two to four times as fast, but changes the model's
    input: on two photographs resized to 32 and 64 pixels by 1 to 2 of 255 on average and by up to 27.

    Raises:
        ImageTooLargeError: more bytes, pixels or frames than allowed.
        UnsupportedImageError: not a JPEG, PNG, WebP or BMP, or a BMP that is run-length encoded.
        CorruptImageError: empty, or an allowed format, but truncated or damaged. A JPEG that was cut and then given an
            end again is not noticed: its decoder paints what is missing grey.
    """
    return EncodedImage(content, limits).decode()


class EncodedImage:
    """An image file whose header was read and found acceptable; :meth:`decode` it once.

    Raises:
        ImageTooLargeError: more bytes, pixels or frames than allowed.
        UnsupportedImageError: not a JPEG, PNG, WebP or BMP, or a BMP that is run-length encoded.
        CorruptImageError: a header that cannot be true.
    """

    def __init__(self, content: bytes, limits: ImageLimits | None = None) -> None:
        limits = limits or ImageLimits()
        self._content = content
        self._image = _open(content, limits)
        _check_header(self._image, content, limits)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the upright image, in pixels. Takes the header; of a PNG, which may name its orientation
        behind the pixels, all.

        Raises:
            CorruptImageError: a truncated or damaged PNG.
            ImageTooLargeError: memory does not suffice.
        """
        if self._image.format == "PNG":
            with self._decoding():
                self._load()
        return upright_size(self._image)

    def decode(self, reduction: int = 1) -> Image.Image:
        """RGB and upright; see :func:`decode_image`.

        Args:
            reduction: 1, 2, 4 or 8: decode a JPEG at this fraction of its size (rounded up), which costs as much less.
                Other formats are decoded in full.

        Raises:
            CorruptImageError: truncated or damaged.
            ImageTooLargeError: memory does not suffice.
        """
        image = self._image
        with self._decoding():
            if reduction > 1 and image.format in ("JPEG", "MPO"):
                image.draft(None, (max(image.width // reduction, 1), max(image.height // reduction, 1)))
            self._load()
            return to_rgb(upright(image))

    def _load(self) -> None:
        self._image.load()
        suspect = self._image.format == "PNG" and _may_lack_pixels(self._image, self._content)
        if suspect and not holds_all_pixels(self._content):
            raise ValueError("there are fewer pixels than the header says")

    @contextmanager
    def _decoding(self) -> Iterator[None]:
        try:
            yield
        except MemoryError as error:
            raise ImageTooLargeError("The image needs more memory than there is; send a smaller one.") from error
        except Exception as error:  # a damaged file can raise nearly anything in a decoder
            raise CorruptImageError(f"The {self._image.format} image is truncated or damaged.") from error


def check_byte_count(count: int, most: int) -> None:
    """Ask before a file is read, so that a film among the images fills no memory.

    Raises:
        ImageTooLargeError: the file has more than ``most`` bytes.
    """
    if count > most:
        raise ImageTooLargeError(f"The image has {count} bytes; at most {most} are accepted.")


def _open(content: bytes, limits: ImageLimits) -> Image.Image:
    """Read the header."""
    check_byte_count(len(content), limits.max_bytes)
    if not content:
        raise CorruptImageError("The image is empty (0 bytes); send a JPEG, PNG, WebP or BMP file.")
    try:
        return Image.open(io.BytesIO(content), formats=ALLOWED_FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageTooLargeError("The image has more pixels than any camera's; send a smaller one.") from error
    except Exception as error:  # a hostile header can raise nearly anything in a decoder
        claimed = _claimed_format(content)
        if claimed:
            raise CorruptImageError(f"The {claimed} image is truncated or damaged.") from error
        raise UnsupportedImageError("The bytes are not a readable JPEG, PNG, WebP or BMP image.") from error


def _claimed_format(content: bytes) -> str:
    """What the first bytes say, of the formats that are read; else empty."""
    if content.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if content.startswith(b"RIFF") and content[8:12] == b"WEBP":
        return "WEBP"
    return "BMP" if content.startswith(b"BM") and content[6:10] == bytes(4) else ""


def _may_lack_pixels(image: Image.Image, content: bytes) -> bool:
    """Whether a loaded PNG looks as one does whose data end early: one of its last two rows is all zero."""
    rows = range(max(image.height - 2, 0), image.height)
    return is_interlaced(content) or not all(any(image.crop((0, y, image.width, y + 1)).tobytes()) for y in rows)


def _check_header(image: Image.Image, content: bytes, limits: ImageLimits) -> None:
    width, height = image.size
    if width * height > limits.max_pixels:
        raise ImageTooLargeError(
            f"The image has {width} x {height} pixels; at most {limits.max_pixels} in all are accepted."
        )
    frames = getattr(image, "n_frames", 1)
    if frames > limits.max_frames:
        raise ImageTooLargeError(f"The image has {frames} frames; at most {limits.max_frames} are accepted.")
    if image.format == "BMP" and image.info.get("compression") in _RUN_LENGTH_ENCODINGS:
        raise UnsupportedImageError("The BMP is run-length encoded; save it as PNG.")
    if image.format in ("JPEG", "MPO"):
        most = min(max(_MAX_SCANNED_PIXELS // (width * height), _ALWAYS_ALLOWED_SCANS), _MAX_SCANS)
        if content.count(_START_OF_SCAN) > most:
            raise ImageTooLargeError(
                f"The JPEG of {width} x {height} pixels has more than {most} scans; save it again with fewer."
            )
        if width * height > len(content) * _JPEG_PIXELS_A_BYTE:
            raise CorruptImageError(
                f"The JPEG image is truncated or damaged: no {width} x {height} pixels fit into it."
            )


def resized_size(size: tuple[int, int], preprocessing: Preprocessing) -> tuple[int, int]:
    """Width and height that :func:`resize` gives an image of this width and height before it crops. Resizes nothing.

    Raises:
        ImageTooLargeError: so elongated that resizing its shorter edge would make the other one huge.
    """
    if preprocessing.resize_shorter is None:
        return preprocessing.width, preprocessing.height
    width, height = size
    scale = preprocessing.resize_shorter / min(size)
    resized = (max(round(width * scale), preprocessing.width), max(round(height * scale), preprocessing.height))
    if resized[0] * resized[1] > _MAX_RESIZED_PIXELS:
        raise ImageTooLargeError(
            f"The image has {width} x {height} pixels, too elongated to be resized; crop it first."
        )
    return resized


def resize(image: Image.Image, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Resize (and centre-crop) an RGB image to the model's size: uint8 (height, width, 3).

    Raises:
        ImageTooLargeError: so elongated that resizing its shorter edge would make the other one huge.
    """
    target = (preprocessing.width, preprocessing.height)
    size = resized_size(image.size, preprocessing)
    if size != image.size:
        image = image.resize(size, _FILTERS[preprocessing.interpolation])
    if preprocessing.resize_shorter is not None:
        left, top = (image.width - target[0]) // 2, (image.height - target[1]) // 2
        image = image.crop((left, top, left + target[0], top + target[1]))
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
