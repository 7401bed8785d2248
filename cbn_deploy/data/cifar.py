"""CIFAR-10-LT and CIFAR-100-LT from the official files, or from a packing of lossless WebP strips."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cbn_deploy.data.cifar_pack import read_pack
from cbn_deploy.data.cifar_pickle import read_batch
from cbn_deploy.data.image_set import ArrayImageSet, LongTailedData
from cbn_deploy.data.long_tail import long_tail_counts, long_tail_subset
from cbn_deploy.errors import DataError
from cbn_deploy.runtime.description import Preprocessing

__all__ = ["DEFAULT_RHO", "Kind", "holds_cifar", "load_cifar_lt"]

Kind = Literal["cifar10", "cifar100"]
DEFAULT_RHO = 100.0
_PIXELS = 3 * 32 * 32

# The literature normalises both sets with CIFAR-10's statistics.
_PREPROCESSING = Preprocessing(height=32, width=32, mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010))


@dataclass(frozen=True)
class _Split:
    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class _Layout:
    """Where one official distribution keeps its images: file names, and how to read one of them."""

    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    names: str
    read: Callable[[Path], _Split]
    read_names: Callable[[Path], list[str]]


def load_cifar_lt(kind: Kind, data_dir: Path, rho: float = DEFAULT_RHO, seed: int = 0) -> LongTailedData:
    """The long-tailed training subset and the whole test set.

    ``data_dir`` holds, or is, one of: ``cifar-10-batches-py`` / ``cifar-100-python`` (official, Python), or
    ``cifar-10-batches-bin`` / ``cifar-100-binary`` (official, binary), or ``cifar10-lt.npz`` / ``cifar100-lt.npz``
    (the long-tail order of imbalance 10 or more, seed 0). The first found in this order is read.

    Args:
        kind: "cifar10" or "cifar100" (fine labels).
        data_dir: see above.
        rho: imbalance, at least 1.
        seed: of the subset; the published subsets use 0.

    Raises:
        DataError: no such files, damaged files, or too few images for ``rho``.
    """
    classes = {"cifar10": 10, "cifar100": 100}[kind]
    data_dir = Path(data_dir)
    if official := _official(kind, data_dir):
        try:
            return _load_official(kind, *official, classes, rho, seed)
        except OSError as error:
            raise DataError(f"Cannot read {error.filename}: {error.strerror or error}.") from error
    pack = _pack(kind, data_dir)
    if pack.is_file():
        return _load_pack(kind, pack, classes, rho, seed)
    expected = " or ".join(f"{layout.folder}/ ({layout.train[0]}, ..., {layout.test[0]})" for layout in _LAYOUTS[kind])
    raise DataError(
        f"{data_dir} holds no {kind.upper().replace('CIFAR', 'CIFAR-')} files; expected {expected} or {kind}-lt.npz."
    )


def holds_cifar(kind: Kind, data_dir: Path) -> bool:
    """Whether :func:`load_cifar_lt` would read files at ``data_dir``, which may still turn out to be damaged."""
    return _official(kind, data_dir) is not None or _pack(kind, data_dir).is_file()


def _official(kind: Kind, data_dir: Path) -> tuple[Path, _Layout] | None:
    """The folder of the first official distribution that has a training file, and its layout."""
    for layout in _LAYOUTS[kind]:
        for folder in (data_dir / layout.folder, data_dir):
            if any((folder / name).is_file() for name in layout.train):
                return folder, layout
    return None


def _pack(kind: Kind, data_dir: Path) -> Path:
    return data_dir if data_dir.suffix == ".npz" else data_dir / f"{kind}-lt.npz"


def _load_official(kind: Kind, folder: Path, layout: _Layout, classes: int, rho: float, seed: int) -> LongTailedData:
    needed = (*layout.train, *layout.test, layout.names)
    missing = [name for name in needed if not (folder / name).is_file()]
    if missing:
        raise DataError(f"{folder} lacks {', '.join(missing)}; expected {', '.join(needed)}.")
    train = _join([layout.read(folder / name) for name in layout.train])
    test = _join([layout.read(folder / name) for name in layout.test])
    names = layout.read_names(folder / layout.names)
    highest = max(int(train.labels.max()), int(test.labels.max()))
    if len(names) != classes or highest >= classes:
        raise DataError(
            f"{folder} has {len(names)} class names and labels up to {highest}; expected {classes} classes."
        )
    counts = _counts(len(train.labels), rho, classes)
    chosen = long_tail_subset(train.labels, counts, seed)
    return LongTailedData(
        name=f"{kind}-lt",
        train=ArrayImageSet(train.images[chosen], train.labels[chosen], chosen),
        test=ArrayImageSet(test.images, test.labels),
        class_names=tuple(names),
        preprocessing=_PREPROCESSING,
    )


def _load_pack(kind: Kind, path: Path, classes: int, rho: float, seed: int) -> LongTailedData:
    if seed != 0:
        raise DataError(f"{path.name} holds the subset of seed 0 only; use the official files for seed {seed}.")
    pack = read_pack(path, classes)
    # The packing lists every class in the order of the subset rule, so a subset is the head of each class.
    counts = _counts(50_000, rho, classes)
    heads = []
    for label, count in enumerate(counts):
        indices = np.flatnonzero(pack.train_labels == label)
        if len(indices) < count:
            raise DataError(
                f"{path.name} holds {len(indices)} training images of class {label}, rho={rho:g} needs {count}; "
                "use a larger rho or the official files."
            )
        heads.append(indices[:count])
    chosen = np.concatenate(heads)
    return LongTailedData(
        name=f"{kind}-lt",
        train=ArrayImageSet(pack.train_images[chosen], pack.train_labels[chosen], pack.train_index[chosen]),
        test=ArrayImageSet(pack.test_images, pack.test_labels),
        class_names=pack.class_names,
        preprocessing=_PREPROCESSING,
    )


def _counts(images: int, rho: float, classes: int) -> list[int]:
    n_max = max(images // classes, 1)
    counts = long_tail_counts(n_max, rho, classes)
    if counts[-1] < 1:
        raise DataError(f"rho={rho:g} leaves the last class without training images; use at most {n_max}.")
    return counts


def _join(splits: list[_Split]) -> _Split:
    return _Split(np.concatenate([s.images for s in splits]), np.concatenate([s.labels for s in splits]))


def _split(path: Path, rows: NDArray[np.uint8], labels: NDArray[np.int64]) -> _Split:
    """Rows of 1024 red, 1024 green, 1024 blue values -> images (n, 32, 32, 3)."""
    if len(rows) < 1 or rows.shape != (len(labels), _PIXELS) or labels.min() < 0:
        raise DataError(f"{path} is damaged: {len(labels)} labels for data of shape {rows.shape}; download it again.")
    images = np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    return _Split(images, labels)


def _read_python(labels_key: str) -> Callable[[Path], _Split]:
    def read(path: Path) -> _Split:
        batch = read_batch(path)
        rows, labels = batch.get("data"), batch.get(labels_key)
        if not isinstance(rows, np.ndarray) or rows.dtype != np.uint8 or rows.ndim != 2:
            raise DataError(f"{path} has no 'data' array of bytes; download the official file again.")
        if not isinstance(labels, list) or not all(type(label) is int for label in labels):
            raise DataError(f"{path} has no list '{labels_key}'; download the official file again.")
        return _split(path, rows, np.asarray(labels, dtype=np.int64))

    return read


def _read_python_names(key: str) -> Callable[[Path], list[str]]:
    def read(path: Path) -> list[str]:
        names = read_batch(path).get(key)
        if not isinstance(names, list):
            raise DataError(f"{path} has no list '{key}'; download the official file again.")
        return [str(name) for name in names]

    return read


def _read_binary(label_bytes: int) -> Callable[[Path], _Split]:
    """Records of ``label_bytes`` labels (the last one counts: CIFAR-100 has coarse, fine) and 3072 pixels."""

    def read(path: Path) -> _Split:
        record = label_bytes + _PIXELS
        content = np.frombuffer(path.read_bytes(), dtype=np.uint8)
        if len(content) == 0 or len(content) % record:
            raise DataError(
                f"{path} is truncated: {len(content)} bytes are no multiple of {record}; download it again."
            )
        records = content.reshape(-1, record)
        return _split(path, records[:, label_bytes:], records[:, label_bytes - 1].astype(np.int64))

    return read


def _read_text_names(path: Path) -> list[str]:
    return [line.strip() for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]


_TRAIN_10 = tuple(f"data_batch_{number}" for number in range(1, 6))
_LAYOUTS: dict[Kind, tuple[_Layout, ...]] = {
    "cifar10": (
        _Layout(
            folder="cifar-10-batches-py",
            train=_TRAIN_10,
            test=("test_batch",),
            names="batches.meta",
            read=_read_python("labels"),
            read_names=_read_python_names("label_names"),
        ),
        _Layout(
            folder="cifar-10-batches-bin",
            train=tuple(f"{name}.bin" for name in _TRAIN_10),
            test=("test_batch.bin",),
            names="batches.meta.txt",
            read=_read_binary(1),
            read_names=_read_text_names,
        ),
    ),
    "cifar100": (
        _Layout(
            folder="cifar-100-python",
            train=("train",),
            test=("test",),
            names="meta",
            read=_read_python("fine_labels"),
            read_names=_read_python_names("fine_label_names"),
        ),
        _Layout(
            folder="cifar-100-binary",
            train=("train.bin",),
            test=("test.bin",),
            names="fine_label_names.txt",
            read=_read_binary(2),
            read_names=_read_text_names,
        ),
    ),
}
