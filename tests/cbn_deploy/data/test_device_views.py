"""Views of a whole batch against :class:`Views`, image by image: equal to the bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from cbn_deploy.data import ArrayImageSet, ViewConfig
from cbn_deploy.data.device_views import DeviceViews
from cbn_deploy.data.transforms import Views
from cbn_deploy.runtime import Preprocessing
from tests.cbn_deploy.data.devices import DEVICES

CONFIGS = {
    "default": ViewConfig(),
    "imagenet": ViewConfig(policy="imagenet"),
    "no flip": ViewConfig(flip=False),
    "no cutout": ViewConfig(cutout=0),
    "odd cutout": ViewConfig(cutout=7, padding=0),
    "cutout larger than the image": ViewConfig(cutout=99),
    "no autoaugment": ViewConfig(autoaugment=False),
    "padding larger than the image": ViewConfig(padding=50, autoaugment=False, cutout=0),
    "nothing": ViewConfig(padding=0, flip=False, autoaugment=False, cutout=0),
}


def preprocessing(height: int, width: int) -> Preprocessing:
    return Preprocessing(height=height, width=width, mean=(0.5, 0.25, 0.75))


def make_images(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (7, height, width, 3), dtype=np.uint8)


def numbers(seeds: range, count: int) -> NDArray[np.float64]:
    return np.stack([np.random.default_rng(seed).random(count) for seed in seeds])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("size", [(32, 32), (17, 23)])
def test_views_have_the_pixels_of_those_made_one_by_one(size: tuple[int, int], config: ViewConfig, device: str) -> None:
    pixels = make_images(*size)
    images = ArrayImageSet(pixels, np.zeros(len(pixels), np.int64))
    one_by_one = Views(config, preprocessing(*size))
    together = DeviceViews(config, preprocessing(*size), torch.device(device))
    on_device, seeds = torch.from_numpy(pixels).to(device), range(600)
    indices = np.arange(600) % len(pixels)
    for kind, count in (("weak", together.weak_numbers), ("strong", together.strong_numbers)):
        actual = getattr(together, kind)(on_device, indices, numbers(seeds, count)).cpu().numpy()
        for seed in seeds:
            expected = getattr(one_by_one, kind)(images, indices[seed], np.random.default_rng(seed))
            np.testing.assert_array_equal(actual[seed], expected, err_msg=f"{kind} view {seed}")
    np.testing.assert_array_equal(on_device.cpu().numpy(), pixels)


@pytest.mark.parametrize("device", DEVICES)
def test_no_image_has_no_views(device: str) -> None:
    views = DeviceViews(ViewConfig(), preprocessing(32, 32), torch.device(device))
    images = torch.from_numpy(make_images(32, 32)).to(device)
    none = np.empty(0, np.int64)
    assert views.strong(images, none, np.empty((0, 10))).shape == (0, 32, 32, 3)
    assert views.weak(images, none, np.empty((0, 3))).shape == (0, 32, 32, 3)


def test_wrong_arguments() -> None:
    cpu = torch.device("cpu")
    with pytest.raises(ValueError, match="views on a device take crop='padded', got 'resized'"):
        DeviceViews(ViewConfig(crop="resized"), preprocessing(32, 32), cpu)
    views = DeviceViews(ViewConfig(), preprocessing(32, 32), cpu)
    images, indices = torch.from_numpy(make_images(32, 32)), np.arange(2)
    with pytest.raises(ValueError, match=r"numbers must have shape \(2, 10\), got \(2, 3\)"):
        views.strong(images, indices, numbers(range(2), 3))
    for wrong in (images[:, 1:], images.float(), images.transpose(1, 2)):
        with pytest.raises(ValueError, match=r"images must be contiguous uint8 \(n, 32, 32, 3\)"):
            views.weak(wrong, indices, numbers(range(2), 3))
