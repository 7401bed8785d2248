from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cbn_deploy.data import LongTailedData, load_cifar_lt, long_tail_counts, long_tail_subset
from cbn_deploy.data.cifar_pack import read_pack
from cbn_deploy.errors import DataError
from tests.cbn_deploy.data.cifar_files import NAMES_10, NAMES_100, dump_python2, write_binary, write_pack, write_python

Part = tuple[NDArray[np.uint8], NDArray[np.int64]]
FOLDERS = {
    ("cifar10", "python"): "cifar-10-batches-py",
    ("cifar10", "binary"): "cifar-10-batches-bin",
    ("cifar100", "python"): "cifar-100-python",
    ("cifar100", "binary"): "cifar-100-binary",
}


def make_part(classes: int, per_class: int, seed: int) -> Part:
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(classes), per_class))
    return rng.integers(0, 256, (len(labels), 32, 32, 3), dtype=np.uint8), labels


def pixels(data: LongTailedData, split: str) -> NDArray[np.uint8]:
    images = getattr(data, split)
    return np.stack([images.pixels(i) for i in range(len(images))])


@pytest.mark.parametrize(("kind", "style"), list(FOLDERS))
@pytest.mark.parametrize("inside", [True, False])
def test_official_layouts(kind: Any, style: str, inside: bool, tmp_path: Path) -> None:
    classes, per_class = (10, 20) if kind == "cifar10" else (100, 10)
    train, test = make_part(classes, per_class, 1), make_part(classes, 2, 2)
    folder = tmp_path / FOLDERS[kind, style]
    (write_python if style == "python" else write_binary)(folder, kind, train, test)

    data = load_cifar_lt(kind, folder if inside else tmp_path, rho=5)

    chosen = long_tail_subset(train[1], long_tail_counts(per_class, 5, classes))
    assert data.class_names == tuple(NAMES_10 if kind == "cifar10" else NAMES_100)
    assert data.class_counts == tuple(long_tail_counts(per_class, 5, classes))
    np.testing.assert_array_equal(data.train.labels, train[1][chosen])
    np.testing.assert_array_equal(pixels(data, "train"), train[0][chosen])
    np.testing.assert_array_equal(data.test.labels, test[1])
    np.testing.assert_array_equal(pixels(data, "test"), test[0])
    assert data.train.name(0) == f"image {chosen[0]}"


def test_repacked_by_python_3_is_read_too(tmp_path: Path) -> None:
    train, test = make_part(10, 10, 1), make_part(10, 2, 2)
    folder = tmp_path / "cifar-10-batches-py"
    write_python(folder, "cifar10", train, test)
    batch = pickle.loads((folder / "test_batch").read_bytes(), encoding="bytes")  # noqa: S301 - written above
    (folder / "test_batch").write_bytes(pickle.dumps(batch, protocol=2))
    np.testing.assert_array_equal(load_cifar_lt("cifar10", tmp_path, rho=2).test.labels, test[1])


def test_pack_gives_the_same_as_the_official_files(tmp_path: Path) -> None:
    # 5,000 a class are assumed by the packing, so shrink by a large rho: 5000 ... 5 images of class 0 ... 9.
    counts = long_tail_counts(5000, 1000, 10)
    labels = np.repeat(np.arange(10), counts)
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (len(labels), 1, 1, 3), dtype=np.uint8)
    images = np.ascontiguousarray(np.broadcast_to(colours, (len(labels), 32, 32, 3)))
    index, test = rng.permutation(50_000)[: len(labels)], make_part(10, 20, 2)
    write_pack(tmp_path / "cifar10-lt.npz", (images, labels), index, test)
    data = load_cifar_lt("cifar10", tmp_path, rho=1000)
    np.testing.assert_array_equal(pixels(data, "train"), images)
    np.testing.assert_array_equal(pixels(data, "test"), test[0])
    assert data.class_counts == tuple(counts)
    assert data.train.name(7) == f"image {index[7]}"
    assert len(load_cifar_lt("cifar10", tmp_path / "cifar10-lt.npz", rho=2000).train) < len(labels)
    with pytest.raises(DataError, match="rho=100 needs"):
        load_cifar_lt("cifar10", tmp_path, rho=100)
    with pytest.raises(DataError, match="seed 0 only"):
        load_cifar_lt("cifar10", tmp_path, rho=1000, seed=1)


def test_real_packing(shared_data: Path) -> None:
    data = load_cifar_lt("cifar10", shared_data, rho=100)
    assert data.class_names == tuple(NAMES_10)
    assert len(data.train) == 12_406
    assert np.bincount(data.test.labels).tolist() == [1000] * 10
    # The published channel means of CIFAR-10 hold for its (balanced) test set too.
    means = pixels(data, "test").mean(axis=(0, 1, 2)) / 255
    np.testing.assert_allclose(means, data.preprocessing.mean, atol=0.005)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no CIFAR-10 files; expected cifar-10-batches-py/.*or cifar10-lt\.npz\.$"):
        load_cifar_lt("cifar10", tmp_path)
    write_python(tmp_path / "cifar-10-batches-py", "cifar10", make_part(10, 5, 1), make_part(10, 1, 2))
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").unlink()
    with pytest.raises(DataError, match="lacks data_batch_3; expected data_batch_1, data_batch_2"):
        load_cifar_lt("cifar10", tmp_path)


@pytest.mark.parametrize("keep", [0, 1, 100, 3000])
def test_truncated_files_are_refused(keep: int, tmp_path: Path) -> None:
    train, test = make_part(100, 2, 1), make_part(100, 1, 2)
    for style, write, name in (("python", write_python, "train"), ("binary", write_binary, "train.bin")):
        folder = tmp_path / FOLDERS["cifar100", style]
        write(folder, "cifar100", train, test)
        os.truncate(folder / name, keep)
        with pytest.raises(DataError, match=f"{name} is .*truncated.*download it again"):
            load_cifar_lt("cifar100", folder)


def test_a_rho_that_empties_the_tail_is_refused(tmp_path: Path) -> None:
    write_python(tmp_path / "cifar-10-batches-py", "cifar10", make_part(10, 20, 1), make_part(10, 1, 2))
    with pytest.raises(DataError, match="use at most 20"):
        load_cifar_lt("cifar10", tmp_path, rho=100)


def test_truncated_pack_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cifar10-lt.npz"
    write_pack(path, make_part(10, 3, 1), np.arange(30), make_part(10, 2, 2))
    for size in (path.stat().st_size - 10, 1000, 0):
        os.truncate(path, size)
        with pytest.raises(DataError, match=r"is not a CIFAR packing, or truncated .*; copy it again\."):
            load_cifar_lt("cifar10", tmp_path, rho=1000)


@pytest.mark.parametrize("name", ["cifar10-lt.npz", "cifar-10-batches-py/test_batch"])
def test_any_damaged_byte_is_an_error_or_harmless(name: str, tmp_path: Path) -> None:
    write_pack(tmp_path / "cifar10-lt.npz", make_part(10, 5, 1), np.arange(50), make_part(10, 2, 2))
    if "py" in name:
        write_python(tmp_path / "cifar-10-batches-py", "cifar10", make_part(10, 5, 1), make_part(10, 2, 2))
    path, rng = tmp_path / name, np.random.default_rng(0)
    original, refused = path.read_bytes(), 0
    for _ in range(150):
        damaged = bytearray(original)
        # The heads and tails of such files are structure, the middle is pixels.
        place = int(rng.integers(400)) if rng.random() < 0.5 else -1 - int(rng.integers(1500))
        damaged[place] = int(rng.integers(256))
        path.write_bytes(damaged)
        try:
            read_pack(path, 10) if "npz" in name else load_cifar_lt("cifar10", tmp_path, rho=2)
        except DataError:
            refused += 1
    assert refused > 10


class _Harmful:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


def test_no_code_of_a_strange_pickle_runs(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    write_python(folder, "cifar10", make_part(10, 5, 1), make_part(10, 1, 2))
    (folder / "data_batch_1").write_bytes(pickle.dumps({"data": _Harmful(str(tmp_path / "harm"))}, protocol=2))
    with pytest.raises(DataError, match="mkdir is not allowed"):
        load_cifar_lt("cifar10", tmp_path)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ([1, 2], "does not hold a dictionary"),
        ({"labels": [1]}, "no 'data' array"),
        ({"data": np.zeros((1, 3072), np.float32), "labels": [1]}, "no 'data' array"),
        ({"data": np.zeros((1, 3072), np.uint8)}, "no list 'labels'"),
        ({"data": np.zeros((1, 3072), np.uint8), "labels": ["cat"]}, "no list 'labels'"),
        ({"data": np.zeros((1, 3072), np.uint8), "labels": [1, 2]}, "2 labels for data of shape"),
        ({"data": np.zeros((1, 3072), np.uint8), "labels": [-1]}, "is damaged"),
        ({"data": np.zeros((1, 3072), np.uint8), "labels": [10]}, "labels up to 10; expected 10 classes"),
        ({"data": np.array([None])}, "dtype 'O8' is not allowed"),
    ],
)
def test_other_content_is_refused(content: Any, sentence: str, tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    write_python(folder, "cifar10", make_part(10, 5, 1), make_part(10, 1, 2))
    (folder / "test_batch").write_bytes(dump_python2(content))
    with pytest.raises(DataError, match=sentence):
        load_cifar_lt("cifar10", tmp_path)
