"""Decoding off the event loop: right pixels, right order, named failures."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from cbn_deploy.errors import CorruptImageError, ImageError, ImageTooLargeError
from cbn_deploy.runtime import Preprocessing
from cbn_deploy.runtime.preprocessing import ImageLimits, decode_image, preprocess
from serving.images import Decoder
from tests.serving.files import RED, animated, colour, encode

PREPROCESSING = Preprocessing(height=16, width=24, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))


@pytest.fixture
def decoder() -> Iterator[Decoder]:
    running = Decoder(2, ImageLimits(max_pixels=100_000))
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


def test_damaged_files_of_every_kind_are_image_errors() -> None:
    """2,000 random damages: an image or an ImageError, nothing else."""
    source = random.Random(0)
    seeds = [colour(200, 10, 40, kind) for kind in ("PNG", "JPEG", "WEBP", "BMP")]
    seeds += [animated("PNG"), animated("WEBP")]
    limits = ImageLimits(max_pixels=100_000)
    outcomes = {"image": 0, "error": 0}
    for _ in range(2000):
        content = bytearray(source.choice(seeds))
        for _ in range(source.choice((1, 2, 8))):
            content[source.randrange(len(content))] = source.randrange(256)
        if source.random() < 0.3:
            del content[source.randrange(len(content)) :]
        try:
            assert preprocess(decode_image(bytes(content), limits), PREPROCESSING).shape == (3, 16, 24)
            outcomes["image"] += 1
        except ImageError:
            outcomes["error"] += 1
    assert min(outcomes.values()) > 100
