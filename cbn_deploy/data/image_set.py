"""Labelled images, in memory or on disk, behind one small interface."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cbn_deploy.data.file_paths import FilePaths
from cbn_deploy.errors import DataError, ImageError, ImageTooLargeError
from cbn_deploy.runtime.description import Preprocessing
from cbn_deploy.runtime.preprocessing import EncodedImage, ImageLimits, check_byte_count, decode_image, resize

__all__ = [
    "OWN_IMAGE_LIMITS",
    "ArrayImageSet",
    "Box",
    "ChooseBox",
    "FileImageSet",
    "ImageSet",
    "LongTailedData",
    "image_kind",
    "read_image",
]


Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels."""

ChooseBox = Callable[[int, int], Box]
"""(width, height) of an image -> a part of it."""

OWN_IMAGE_LIMITS = ImageLimits(max_bytes=400_000_000, max_pixels=89_478_485)
"""Of images to train on and to evaluate with. They come from the user's disk and no stranger's upload, so a camera's 61
megapixels pass and a file without compression does. One pixel more and Pillow takes an image for a decompression bomb;
decoding one in full takes up to some 1.2 GB of memory in each process that prepares batches."""

# At which fractions of its size a JPEG can be decoded.
_REDUCTIONS = (8, 4, 2)


def read_image(path: Path) -> Image.Image:
    """Decode one image file to RGB.

    Raises:
        DataError: the file cannot be read.
        ImageError: it is no image, damaged, or too large.
    """
    return decode_image(_read(path), OWN_IMAGE_LIMITS)


def _read(path: Path) -> bytes:
    try:
        check_byte_count(path.stat().st_size, OWN_IMAGE_LIMITS.max_bytes)
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror or error}.") from error


def _reduction(box: Box, size: tuple[int, int]) -> int:
    """By how much a JPEG may be reduced so that ``box`` still has the pixels of ``size`` = (height, width)."""
    left, top, right, bottom = box
    spare = min((right - left) // size[1], (bottom - top) // size[0])
    return next((reduction for reduction in _REDUCTIONS if reduction <= spare), 1)


def _resized_part(
    image: Image.Image, box: tuple[float, float, float, float], size: tuple[int, int]
) -> NDArray[np.uint8]:
    """The part of an RGB image in ``box``, bilinearly resized to ``size`` = (height, width)."""
    return np.asarray(image.resize((size[1], size[0]), Image.Resampling.BILINEAR, box=box), dtype=np.uint8)


def image_kind(path: Path) -> str:
    """Such as "JPEG RGB": format and colour mode of a file that :func:`read_image` has accepted."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as decoding did: Pillow remarks on odd headers
        with Image.open(path) as image:
            return f"{image.format} {image.mode}"


class ImageSet(ABC):
    """n labelled images.

    Attributes:
        labels: int64 (n,) class of every image.
    """

    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def name(self, index: int) -> str:
        """What a person would call the image: its path, or its number in the data set."""

    @abstractmethod
    def image(self, index: int) -> Image.Image:
        """The RGB image at its own size."""

    @abstractmethod
    def pixels(self, index: int) -> NDArray[np.uint8]:
        """The image at the model's size: uint8 (H, W, 3). Not to be written to."""

    def parts(self, index: int, choices: Sequence[ChooseBox], size: tuple[int, int]) -> list[NDArray[np.uint8]]:
        """Parts of the image at its own size, bilinearly resized, for training: each uint8 (height, width, 3).

        Args:
            index: of the image.
            choices: for every part, (width, height) of the image -> the box to cut out.
            size: (height, width) of the results.
        """
        image = self.image(index)
        return [_resized_part(image, choose(*image.size), size) for choose in choices]

    def resized(self, index: int, preprocessing: Preprocessing) -> NDArray[np.uint8]:
        """The image at the size of any model, whether that is the set's own or another: uint8 (H, W, 3).

        Raises:
            DataError: it cannot be read, or is too elongated to be resized.
        """
        return self.pixels(index) if self.fits(preprocessing) else self._resized(index, preprocessing)

    def _resized(self, index: int, preprocessing: Preprocessing) -> NDArray[np.uint8]:
        image = self.image(index)
        try:
            return resize(image, preprocessing)
        except ImageError as error:  # says itself what to do, but not with which image
            raise DataError(f"{self.name(index)}: {error} --check lists every such file.") from error

    @abstractmethod
    def fits(self, preprocessing: Preprocessing) -> bool:
        """Whether :meth:`pixels` already is what ``resize(image, preprocessing)`` would give."""


class ArrayImageSet(ImageSet):
    """Images in memory.

    Args:
        images: uint8 (n, H, W, 3).
        labels: (n,) class of each.
        numbers: (n,) the images' own numbers in the data set they come from.
    """

    def __init__(
        self, images: NDArray[np.uint8], labels: NDArray[np.integer], numbers: NDArray[np.integer] | None = None
    ) -> None:
        if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
            raise ValueError(f"images must be uint8 (n, H, W, 3), got {images.dtype} {images.shape}")
        if labels.shape != images.shape[:1]:
            raise ValueError(f"labels must have shape ({len(images)},), got {labels.shape}")
        self.images = images
        self.labels = labels.astype(np.int64)
        self.numbers = np.arange(len(images)) if numbers is None else numbers

    def name(self, index: int) -> str:
        """ "image 17": the image's number in the data set it came from."""
        return f"image {self.numbers[index]}"

    def image(self, index: int) -> Image.Image:
        """The RGB image."""
        return Image.fromarray(self.images[index])

    def pixels(self, index: int) -> NDArray[np.uint8]:
        """uint8 (H, W, 3), a view."""
        view: NDArray[np.uint8] = self.images[index]
        return view

    def fits(self, preprocessing: Preprocessing) -> bool:
        """Whether no resize is needed."""
        size = (preprocessing.height, preprocessing.width)
        return preprocessing.resize_shorter in (None, min(size)) and self.images.shape[1:3] == size


class FileImageSet(ImageSet):
    """Image files, decoded on demand; when all fit into ``cache_bytes`` at model size, each is resized only once.

    Args:
        paths: n files.
        labels: (n,) class of each.
        preprocessing: size and resampling of :meth:`pixels`.
        cache_bytes: upper bound of the memory for resized images; 0 never caches.

    Attributes:
        cached: whether every image stays in memory after its first use.
    """

    def __init__(
        self, paths: Sequence[Path], labels: NDArray[np.integer], preprocessing: Preprocessing, cache_bytes: int = 0
    ) -> None:
        if labels.shape != (len(paths),):
            raise ValueError(f"labels must have shape ({len(paths)},), got {labels.shape}")
        self.paths = paths if isinstance(paths, FilePaths) else FilePaths(Path(), map(str, paths))
        self.labels = labels.astype(np.int64)
        self.preprocessing = preprocessing
        self.cached = len(paths) * preprocessing.height * preprocessing.width * 3 <= cache_bytes
        self._cache: dict[int, NDArray[np.uint8]] = {}

    def name(self, index: int) -> str:
        """The file's path."""
        return str(self.paths[index])

    def image(self, index: int) -> Image.Image:
        """The decoded RGB image.

        Raises:
            DataError: the file is missing, damaged or too large.
        """
        with self._named(index):
            return read_image(self.paths[index])

    def parts(self, index: int, choices: Sequence[ChooseBox], size: tuple[int, int]) -> list[NDArray[np.uint8]]:
        """See :meth:`ImageSet.parts`. A JPEG whose part has at least twice the pixels a side that are needed is decoded
        at half, a quarter or an eighth of its size, before the resize: several times as fast. Parts that agree on that
        share one decoding.

        Raises:
            DataError: the file is missing, damaged or too large.
        """
        with self._named(index):
            content = _read(self.paths[index])
            encoded = EncodedImage(content, OWN_IMAGE_LIMITS)
            width, height = encoded.size
            boxes = [choose(width, height) for choose in choices]
            reductions = [_reduction(box, size) for box in boxes]
            decoded = {reductions[0]: encoded.decode(reductions[0])}
            decoded |= {r: EncodedImage(content, OWN_IMAGE_LIMITS).decode(r) for r in reductions if r not in decoded}
        parts = []
        for (left, top, right, bottom), reduction in zip(boxes, reductions, strict=True):
            image = decoded[reduction]
            across, down = image.width / width, image.height / height
            parts.append(_resized_part(image, (left * across, top * down, right * across, bottom * down), size))
        return parts

    @contextmanager
    def _named(self, index: int) -> Iterator[None]:
        try:
            yield
        except ImageError as error:
            advice = "Resize" if isinstance(error, ImageTooLargeError) else "Remove"
            raise DataError(f"{self.paths[index]}: {error} {advice} it; --check lists every such file.") from error

    def pixels(self, index: int) -> NDArray[np.uint8]:
        """Decoded and resized: uint8 (H, W, 3).

        Raises:
            DataError: the file is missing, damaged, too large or too elongated to be resized.
        """
        if index in self._cache:
            return self._cache[index]
        pixels = self._resized(index, self.preprocessing)
        if self.cached:
            self._cache[index] = pixels
        return pixels

    def fits(self, preprocessing: Preprocessing) -> bool:
        """Whether size and resampling are the same."""

        def geometry(p: Preprocessing) -> tuple[object, ...]:
            return p.height, p.width, p.resize_shorter, p.interpolation

        return geometry(preprocessing) == geometry(self.preprocessing)


@dataclass(frozen=True, kw_only=True)
class LongTailedData:
    """A training set, a test set and what a model needs to know about them.

    Attributes:
        name: such as "digits-lt".
        train: the (long-tailed) training images.
        test: the held-out images, never trained on.
        class_names: K names in label order.
        preprocessing: image -> model input, for evaluation and serving.
    """

    name: str
    train: ImageSet
    test: ImageSet
    class_names: tuple[str, ...]
    preprocessing: Preprocessing

    @property
    def class_counts(self) -> tuple[int, ...]:
        """Training images of each class."""
        return tuple(np.bincount(self.train.labels, minlength=len(self.class_names)).tolist())
