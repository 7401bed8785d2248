"""The synthetic images are the same everywhere, and a wrong logit is noticed."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from cbn_deploy.errors import ModelFileError
from cbn_deploy.runtime.description import Preprocessing
from cbn_deploy.runtime.self_test import SelfTest, self_test_images

PIXELS = "0ebc45c3d96c4d5f6017b96287fd15865f35d268bbc8ad54b1187e156fb8a7b2"
PLAIN = Preprocessing(height=32, width=24, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def make() -> SelfTest:
    return SelfTest(logits=np.arange(12.0).reshape(4, 3), allowed=np.full(4, 1e-3))


def test_the_images_never_change() -> None:
    images = self_test_images(PLAIN)
    assert (images.shape, images.dtype) == ((4, 3, 32, 24), np.float32)
    pixels = np.rint(images * 255).astype(np.uint8)
    # Files in the world carry the logits of exactly these pixels.
    assert hashlib.sha256(pixels.tobytes()).hexdigest() == PIXELS
    # Ordinary images: every channel of each varies, none is saturated.
    assert images.std(axis=(2, 3)).min() > 0.1
    assert np.abs(images.mean(axis=(2, 3)) - 0.5).max() < 0.35


def test_round_trip_and_what_is_noticed() -> None:
    expected = make()
    again = SelfTest.from_dict(expected.to_dict(), 3)
    again.check(expected.logits.astype(np.float32) + 0.9e-3)
    for change in (2e-3, -2e-3, np.nan, np.inf):
        wrong = expected.logits.astype(np.float32)
        wrong[2, 1] += np.float32(change)
        with pytest.raises(ModelFileError, match="self-test failed"):
            again.check(wrong)


def test_damaged_records() -> None:
    plain = make().to_dict()
    with pytest.raises(ModelFileError, match="does not fit"):
        SelfTest.from_dict(plain, 4)
    for damaged in ({}, {**plain, "allowed": "x"}, {**plain, "logits": [[1], [2, 3]]}, {**plain, "allowed": [10**400]}):
        with pytest.raises(ModelFileError, match="damaged"):
            SelfTest.from_dict(damaged, 3)
