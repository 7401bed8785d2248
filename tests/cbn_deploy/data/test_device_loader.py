"""Batches whose views are made on the device against those of worker processes: equal to the bit."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cbn_deploy.data import (
    ArrayImageSet,
    DeviceLoader,
    FileImageSet,
    LongTailedData,
    TrainingBatch,
    TrainingLoader,
    ViewConfig,
    load_digits_lt,
    training_loader,
)
from cbn_deploy.data import device_loader as module
from cbn_deploy.data.sharding import Sharding
from cbn_deploy.errors import DataError
from cbn_deploy.runtime import Preprocessing
from tests.cbn_deploy.data.devices import DEVICES

PREPROCESSING = Preprocessing(height=32, width=32, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))


def make_data(n: int) -> LongTailedData:
    """n images of three unequal classes."""
    pixels = np.random.default_rng(0).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
    images = ArrayImageSet(pixels, np.minimum(np.arange(n) // 3, 2))
    return LongTailedData(
        name="test", train=images, test=images, class_names=("a", "b", "c"), preprocessing=PREPROCESSING
    )


def files_data(folder: Path, n: int, cache_bytes: int, size: int = 32) -> LongTailedData:
    pixels = np.random.default_rng(1).integers(0, 256, (n, 40, 36, 3), dtype=np.uint8)
    paths = [folder / f"{number}.png" for number in range(n)]
    for path, image in zip(paths, pixels, strict=True):
        Image.fromarray(image).save(path)
    preprocessing = Preprocessing(height=size, width=size)
    files = FileImageSet(paths, np.arange(n) % 2, preprocessing, cache_bytes)
    return LongTailedData(name="photos", train=files, test=files, class_names=("a", "b"), preprocessing=PREPROCESSING)


def on_device(loader: TrainingLoader) -> DeviceLoader:
    assert isinstance(loader, DeviceLoader)
    return loader


def assert_same(expected: TrainingBatch, actual: TrainingBatch, device: str) -> None:
    assert actual.strong.device.type == actual.labels.device.type == device
    assert actual.strong.dtype == torch.float32
    assert actual.strong.is_contiguous()
    assert torch.equal(actual.strong.cpu(), expected.strong)
    assert torch.equal(actual.labels.cpu(), expected.labels)
    assert actual.labels.dtype == torch.int64
    assert (actual.weight, actual.ends_step) == (expected.weight, expected.ends_step)
    assert (actual.weak is None) == (expected.weak is None)
    if actual.weak is not None and expected.weak is not None:
        assert torch.equal(actual.weak.cpu(), expected.weak)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("two_views", [False, True])
@pytest.mark.parametrize("sampling", ["instance_balanced", "class_balanced"])
@pytest.mark.parametrize(
    "sharding",
    [
        Sharding(),
        Sharding(accumulate=3),
        Sharding(rank=1, world_size=3, accumulate=4),
        Sharding(rank=4, world_size=5),  # its share of the last batch is empty
    ],
    ids=str,
)
def test_batches_are_those_of_views_made_one_by_one(sharding, sampling, two_views, device) -> None:
    arguments = {
        "batch_size": 16, "seed": 2**32 - 1, "two_views": two_views, "sampling": sampling, "sharding": sharding,
    }  # fmt: skip
    data = make_data(35)  # batches of 16, 16 and 3
    expected = training_loader(data, ViewConfig(), **arguments)
    actual = training_loader(data, ViewConfig(), **arguments, device=torch.device(device), device_views=True)
    assert len(actual) == len(expected) == 3
    for epoch in (4, 0, 4):
        for ours, theirs in zip(actual.epoch(epoch), expected.epoch(epoch), strict=True):
            assert_same(theirs, ours, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("config", [ViewConfig(flip=False), ViewConfig(policy="imagenet", cutout=0, padding=2)])
def test_batches_of_real_images(config: ViewConfig, device: str) -> None:
    data = load_digits_lt()
    expected = training_loader(data, config, batch_size=64, seed=0, two_views=True)
    actual = training_loader(
        data, config, batch_size=64, seed=0, two_views=True, device=torch.device(device), device_views=True
    )
    for ours, theirs in zip(actual.epoch(1), expected.epoch(1), strict=True):
        assert_same(theirs, ours, device)


@pytest.mark.parametrize(("name", "value"), [("_BATCHES_AT_ONCE", 1), ("_BATCHES_AT_ONCE", 2), ("_PIXELS_AT_ONCE", 1)])
def test_how_many_views_are_made_together_changes_nothing(
    name: str, value: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sharding = Sharding(accumulate=2)
    expected = training_loader(make_data(70), ViewConfig(), batch_size=16, seed=0, sharding=sharding)
    monkeypatch.setattr(module, name, value)
    actual = training_loader(make_data(70), ViewConfig(), batch_size=16, seed=0, sharding=sharding, device_views=True)
    for ours, theirs in zip(actual.epoch(0), expected.epoch(0), strict=True):
        assert_same(theirs, ours, "cpu")


@pytest.mark.parametrize("workers", [0, 2])
def test_files_that_all_fit_into_their_cache(workers: int, tmp_path: Path) -> None:
    data = files_data(tmp_path, 20, cache_bytes=20 * 32 * 32 * 3)
    expected = training_loader(data, ViewConfig(), batch_size=8, seed=0, two_views=True)
    actual = training_loader(
        data, ViewConfig(), batch_size=8, seed=0, two_views=True, workers=workers, device_views=True
    )
    for ours, theirs in zip(actual.epoch(2), expected.epoch(2), strict=True):
        assert_same(theirs, ours, "cpu")


def test_what_cannot_be_made_on_the_device(tmp_path: Path) -> None:
    def make(data: LongTailedData, config: ViewConfig) -> None:
        training_loader(data, config, batch_size=2, seed=0, device_views=True)

    with pytest.raises(DataError, match="take the padded crop, not the resized one"):
        make(make_data(5), ViewConfig(crop="resized"))
    with pytest.raises(DataError, match="photos do not fit into their cache"):
        make(files_data(tmp_path, 4, cache_bytes=4 * 32 * 32 * 3 - 1), ViewConfig())
    with pytest.raises(DataError, match="do not have the model's size"):
        make(files_data(tmp_path, 4, cache_bytes=10**6, size=16), ViewConfig())
    damaged = files_data(tmp_path, 4, cache_bytes=10**6)
    (tmp_path / "2.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"2\.png"):
        make(damaged, ViewConfig())
    loader = on_device(training_loader(make_data(4), ViewConfig(), batch_size=2, seed=0, device_views=True))
    with pytest.raises(ValueError, match="epoch must not be negative, got -1"):
        loader.epoch(-1)


@contextmanager
def waiting_forbidden() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that not everything that waits is noticed
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_nothing_waits_for_the_gpu() -> None:
    loader = training_loader(
        make_data(400), ViewConfig(), batch_size=32, seed=0, two_views=True, device=torch.device("cuda"),
        device_views=True,
    )  # fmt: skip
    with waiting_forbidden():
        batches = list(loader.epoch(0))
    assert len(batches) == 13
