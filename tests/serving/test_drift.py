"""The occupancy that forgets, against sums written out."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from serving.drift import OccupancyDrift
from tests.reference.tolerances import tolerance


class Clock:
    """Time passes when it is told to, and a little at every look."""

    def __init__(self, tick: float) -> None:
        self.now, self.tick = 0.0, tick

    def __call__(self) -> float:
        self.now += self.tick
        return self.now


def posteriors(source: np.random.Generator, images: int, tilt: float = 0.0) -> dict[str, np.ndarray]:
    shapes = {"stem": (images, 3, 8, 8), "block": (images, 2, 4, 4)}
    drawn = {layer: source.gamma(1.0, size=shape) for layer, shape in shapes.items()}
    for values in drawn.values():
        values[:, 0] += tilt
    return {layer: (v / v.sum(1, keepdims=True)).astype(np.float32) for layer, v in drawn.items()}


def test_the_mean_forgets_at_its_half_life() -> None:
    source, drift = np.random.default_rng(0), OccupancyDrift({}, Clock(0.0))
    requests = [posteriors(source, images, tilt=index / 5) for index, images in enumerate((1, 4, 2, 3, 4) * 4)]
    for request in requests:
        drift.observe(request)
    total, weight = np.zeros(3), 0.0
    for request in requests:
        images = len(request["stem"])
        decay = 0.5 ** (images / 256)
        total = total * decay + sum(image.reshape(3, -1).mean(1) for image in request["stem"].astype(np.float64))
        weight = weight * decay + images
    assert drift.images == 56
    assert_allclose(drift.layers()["stem"].occupancy, total / weight, **tolerance("float64"))
    assert drift.layers()["stem"].distance is None


def test_the_distance_is_the_share_that_changed_hands() -> None:
    known = {"stem": (0.5, 0.25, 0.25), "block": (0.5, 0.25, 0.25), "gone": (1.0,)}
    drift = OccupancyDrift(known, Clock(0.0))
    request = {"stem": np.tile(np.float32([1.0, 0.0, 0.0])[None, :, None, None], (4, 1, 5, 5))}
    request["block"] = np.tile(np.float32([0.5, 0.5])[None, :, None, None], (4, 1, 2, 2))
    for _ in range(8):
        drift.observe(request)
    layers = drift.layers()
    assert layers["stem"].distance == pytest.approx(0.5)
    assert layers["block"].distance is None, "two Gaussians cannot be compared with three"
    assert set(layers) == {"stem", "block"}


def test_nothing_is_said_too_early_and_only_some_images_of_a_request_are_looked_at() -> None:
    source, drift = np.random.default_rng(0), OccupancyDrift({}, Clock(0.0))
    for _ in range(7):
        drift.observe(posteriors(source, 30))
    assert (drift.images, drift.layers()) == (28, {})
    drift.observe(posteriors(source, 30))
    assert (drift.images, len(drift.layers())) == (32, 2)
    drift.observe({})
    assert drift.images == 32


def test_looking_takes_one_per_cent_of_the_time() -> None:
    clock = Clock(0.001)
    source, drift = np.random.default_rng(0), OccupancyDrift({}, clock)
    request = posteriors(source, 1)
    for _ in range(10_000):  # at a thousand requests a second
        drift.observe(request)
    looks = drift.images
    assert 80 <= looks <= 120
    assert looks * 0.001 <= 0.012 * clock.now


def test_what_is_not_finite_does_not_spoil_the_mean() -> None:
    source, drift = np.random.default_rng(0), OccupancyDrift({}, Clock(0.0))
    for _ in range(8):
        drift.observe(posteriors(source, 4))
    broken = posteriors(source, 4)
    broken["block"][0, 0, 0, 0] = np.nan
    drift.observe(broken)
    assert drift.images == 32
    assert np.isfinite(drift.layers()["block"].occupancy).all()
