"""Decoding off the event loop: right pixels, right order, named failures."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

from cbn_deploy.errors import CorruptImageError, ImageError, ImageTooLargeError
from cbn_deploy.runtime import Preprocessing
from cbn_deploy.runtime.preprocessing import ImageLimits, decode_image, normalize, preprocess
from serving.images import Decoder
from tests.hostile_images import damaged_images
from tests.icc_profiles import DISPLAY_P3_TO_XYZ, rgb_profile
from tests.serving.files import RED, colour, encode

PREPROCESSING = Preprocessing(height=16, width=24, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))


@pytest.fixture
def decoder() -> Iterator[Decoder]:
    running = Decoder(2, ImageLimits(max_pixels=300_000))
    yield running
    running.close()


def test_a_batch_is_normalised_pixels_in_order(decoder: Decoder) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 16, 24, 3), dtype=np.uint8)
    batch = asyncio.run(decoder.decode([encode(image) for image in pixels], PREPROCESSING))
    expected = (pixels / 255.0 - np.array(PREPROCESSING.mean)) / np.array(PREPROCESSING.std)
    assert batch.dtype == np.float32
    np.testing.assert_allclose(batch, expected.transpose(0, 3, 1, 2), rtol=1e-6, atol=1e-6)


def test_one_image_and_many_give_the_same(decoder: Decoder) -> None:
    files = [colour(200, 10, shade, kind) for shade, kind in ((0, "PNG"), (90, "JPEG"), (250, "WEBP"))]
    together = asyncio.run(decoder.decode(files, PREPROCESSING))
    alone = [asyncio.run(decoder.decode([file], PREPROCESSING))[0] for file in files]
    assert_array_equal(together, np.stack(alone))


def test_the_failing_image_is_named(decoder: Decoder) -> None:
    with pytest.raises(CorruptImageError, match="^Image 3 of 3: "):  # noqa: RUF043 - an anchor, nothing else
        asyncio.run(decoder.decode([RED, RED, RED[:300]], PREPROCESSING))


def test_a_line_of_pixels_does_not_fill_the_memory(decoder: Decoder) -> None:
    shorter = Preprocessing(height=224, width=224, resize_shorter=256)
    with pytest.raises(ImageTooLargeError, match="elongated"):
        asyncio.run(decoder.decode([encode(np.zeros((1, 60_000, 3), np.uint8))], shorter))


def photographs(folder: Path) -> list[Path]:
    """Photographs that come with scikit-learn, as the kinds of files that phones and editors make of them."""
    datasets = pytest.importorskip("sklearn.datasets")
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("china.jpg", "flower.jpg"):
        photo = Image.open(Path(datasets.__file__).parent / "images" / name).convert("RGB")
        stem = folder / "train" / name.removesuffix(".jpg") / "x"
        stem.parent.mkdir(parents=True)
        photo.save(stem.with_suffix(".jpg"), quality=90)
        photo.save(stem.with_name("turned.jpg"), exif=exif, progressive=True)
        photo.save(stem.with_name("wide.webp"), icc_profile=rgb_profile(DISPLAY_P3_TO_XYZ, 2.2))
        photo.convert("CMYK").save(stem.with_name("inks.jpg"))
        photo.quantize(200).save(stem.with_name("palette.png"), transparency=3)
        photo.convert("L").save(stem.with_name("grey.bmp"))
    return sorted((folder / "train").rglob("*.*"))


@pytest.mark.parametrize(
    "size", [{"height": 48, "width": 40}, {"height": 56, "width": 56, "resize_shorter": 64, "interpolation": "bicubic"}]
)
def test_the_server_sees_what_training_and_evaluation_see(
    decoder: Decoder, tmp_path: Path, size: dict[str, Any]
) -> None:
    pytest.importorskip("torch")
    from cbn_deploy.data import evaluation_batches
    from cbn_deploy.data.image_set import FileImageSet

    preprocessing = Preprocessing(**size, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    paths = photographs(tmp_path)
    labels = np.zeros(len(paths), np.int64)
    served = asyncio.run(decoder.decode([path.read_bytes() for path in paths], preprocessing))
    for cache_bytes in (0, 2**30):  # resized for every batch, or once
        images = FileImageSet(paths, labels, preprocessing, cache_bytes)
        evaluated = np.concatenate([batch.numpy() for batch, _ in evaluation_batches(images, preprocessing, 5)])
        assert_array_equal(served, evaluated)
        pixels = np.stack([images.pixels(index) for index in range(len(paths))])  # what training's views start from
        assert_array_equal(served, normalize(pixels, preprocessing))
    assert float(served.std()) > 0.5


def test_the_server_sees_cifar_as_evaluation_does(decoder: Decoder, shared_data: Path) -> None:
    pytest.importorskip("torch")
    from cbn_deploy.data import evaluation_batches, load_cifar_lt

    data = load_cifar_lt("cifar10", shared_data, 100)
    batch, _ = next(evaluation_batches(data.test, data.preprocessing, 32))
    files = [encode(data.test.pixels(index)) for index in range(32)]
    assert_array_equal(asyncio.run(decoder.decode(files, data.preprocessing)), batch.numpy())


@pytest.mark.filterwarnings("ignore::UserWarning")  # what Pillow says of damaged metadata
def test_damaged_files_of_every_kind_are_image_errors() -> None:
    """1,500 random damages: an image or an ImageError, nothing else."""
    limits = ImageLimits(max_pixels=1_000_000)
    outcomes = {"image": 0, "error": 0}
    for content in itertools.islice(damaged_images(seed=0), 1500):
        try:
            assert preprocess(decode_image(content, limits), PREPROCESSING).shape == (3, 16, 24)
            outcomes["image"] += 1
        except ImageError:
            outcomes["error"] += 1
    assert min(outcomes.values()) > 100
