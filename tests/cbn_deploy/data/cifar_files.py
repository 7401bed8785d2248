"""Writes small CIFAR distributions in the official layouts."""

from __future__ import annotations

import io
import pickle
import struct
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

NAMES_10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
NAMES_100 = [f"fine{number}" for number in range(100)]


class _Python2Pickler(pickle._Pickler):  # type: ignore[name-defined]  # the pure-Python one can be taught
    """Writes text and bytes with Python 2's string opcodes, as the official files have them."""

    dispatch: ClassVar[dict[Any, Any]] = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def save_string(self, value: Any) -> None:
        content = value.encode("latin1") if isinstance(value, str) else value
        short = len(content) < 256
        head = (
            pickle.SHORT_BINSTRING + bytes([len(content)])
            if short
            else pickle.BINSTRING + struct.pack("<i", len(content))
        )
        self.write(head + content)
        self.memoize(value)

    dispatch[str] = dispatch[bytes] = save_string


def dump_python2(value: Any) -> bytes:
    file = io.BytesIO()
    _Python2Pickler(file, protocol=2).dump(value)
    return file.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def rows(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(n, 32, 32, 3) -> (n, 3072), red plane first."""
    return np.stack([np.concatenate([image[..., channel].ravel() for channel in range(3)]) for image in images])


def write_python(folder: Path, kind: str, train: tuple[Any, Any], test: tuple[Any, Any]) -> None:
    folder.mkdir()
    if kind == "cifar10":
        for number, part in enumerate(np.array_split(np.arange(len(train[1])), 5), start=1):
            _write_batch(folder / f"data_batch_{number}", train[0][part], {"labels": train[1][part].tolist()})
        _write_batch(folder / "test_batch", test[0], {"labels": test[1].tolist()})
        (folder / "batches.meta").write_bytes(dump_python2({"label_names": NAMES_10, "num_vis": 3072}))
        return
    for name, (images, labels) in (("train", train), ("test", test)):
        _write_batch(folder / name, images, {"fine_labels": labels.tolist(), "coarse_labels": (labels // 5).tolist()})
    (folder / "meta").write_bytes(dump_python2({"fine_label_names": NAMES_100, "coarse_label_names": ["x"] * 20}))


def _write_batch(path: Path, images: NDArray[np.uint8], labels: dict[str, list[int]]) -> None:
    names = [f"image_{number}.png" for number in range(len(images))]
    path.write_bytes(dump_python2({"batch_label": "a batch", **labels, "data": rows(images), "filenames": names}))


def write_binary(folder: Path, kind: str, train: tuple[Any, Any], test: tuple[Any, Any]) -> None:
    folder.mkdir()

    def records(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> bytes:
        columns = [labels[:, None]] if kind == "cifar10" else [labels[:, None] // 5, labels[:, None]]
        return np.concatenate([*columns, rows(images)], axis=1).astype(np.uint8).tobytes()

    if kind == "cifar10":
        for number, part in enumerate(np.array_split(np.arange(len(train[1])), 5), start=1):
            (folder / f"data_batch_{number}.bin").write_bytes(records(train[0][part], train[1][part]))
        (folder / "test_batch.bin").write_bytes(records(*test))
        (folder / "batches.meta.txt").write_text("\n".join(NAMES_10) + "\n\n")
        return
    (folder / "train.bin").write_bytes(records(*train))
    (folder / "test.bin").write_bytes(records(*test))
    (folder / "fine_label_names.txt").write_text("\n".join(NAMES_100) + "\n")


def write_pack(path: Path, train: tuple[Any, Any], index: NDArray[np.int64], test: tuple[Any, Any]) -> None:
    arrays: dict[str, Any] = {"class_names": np.array(NAMES_10), "train_index": index.astype(np.int32)}
    for split, (images, labels) in (("train", train), ("test", test)):
        strips = []
        for start in range(0, len(images), 160):
            buffer = io.BytesIO()
            Image.fromarray(images[start : start + 160].reshape(-1, 32, 3)).save(buffer, "WEBP", lossless=True)
            strips.append(np.frombuffer(buffer.getvalue(), np.uint8))
        arrays[f"{split}_webp"] = np.concatenate(strips)
        arrays[f"{split}_offsets"] = np.cumsum([0, *map(len, strips)])
        arrays[f"{split}_labels"] = labels.astype(np.uint8)
    np.savez(path, **arrays)
