"""Read a CIFAR packing: one .npz with lossless WebP strips, 32 pixels wide, images one under another."""

from __future__ import annotations

import io
import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cbn_deploy.errors import DataError

__all__ = ["CifarPack", "read_pack"]


@dataclass(frozen=True)
class CifarPack:
    """All images of a packing.

    Attributes:
        train_images: uint8 (n, 32, 32, 3), class after class, each in the order of the long-tail subset rule.
        train_labels: int64 (n,).
        train_index: int32 (n,), each image's number in the official training set.
        test_images: uint8 (m, 32, 32, 3), official order.
        test_labels: int64 (m,).
        class_names: K names.
    """

    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.int64]
    train_index: NDArray[np.int32]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.int64]
    class_names: tuple[str, ...]


def read_pack(path: Path, classes: int) -> CifarPack:
    """Read ``path``.

    Raises:
        DataError: the file is truncated, damaged, or not such a packing.
    """
    try:
        # np.load leaves a file open that it cannot read; this one is closed in any case.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            train_images = _decode(arrays["train_webp"], arrays["train_offsets"])
            test_images = _decode(arrays["test_webp"], arrays["test_offsets"])
            pack = CifarPack(
                train_images,
                arrays["train_labels"].astype(np.int64),
                arrays["train_index"],
                test_images,
                arrays["test_labels"].astype(np.int64),
                tuple(str(name) for name in arrays["class_names"]),
            )
    except Exception as error:  # a damaged archive can raise nearly anything
        raise DataError(f"{path} is not a CIFAR packing, or truncated ({error}); copy it again.") from error
    lengths = (len(pack.train_images), len(pack.train_labels), len(pack.train_index))
    agree = len(set(lengths)) == 1 and len(pack.test_images) == len(pack.test_labels)
    highest = max(pack.train_labels.max(initial=0), pack.test_labels.max(initial=0))
    if not agree or len(pack.class_names) != classes or highest >= classes:
        raise DataError(f"{path} is inconsistent: images, labels and class names do not match; copy it again.")
    return pack


def _decode(webp: NDArray[np.uint8], offsets: NDArray[np.int64]) -> NDArray[np.uint8]:
    strips = []
    for start, end in itertools.pairwise(offsets):
        image = Image.open(io.BytesIO(webp[start:end].tobytes()), formats=("WEBP",))
        strips.append(np.asarray(image.convert("RGB"), dtype=np.uint8).reshape(-1, 32, 32, 3))
    return np.concatenate(strips)
