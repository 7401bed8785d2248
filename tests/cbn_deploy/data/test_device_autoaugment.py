"""Every operation on a batch against the same one by Pillow, image by image: equal to the bit."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from cbn_deploy.data import load_digits_lt
from cbn_deploy.data.autoaugment import CIFAR10_POLICY, IMAGENET_POLICY, OPERATIONS, SubPolicy
from cbn_deploy.data.device_autoaugment import DeviceOperations, PolicyCases
from tests.cbn_deploy.data.devices import DEVICES

FILL = (125, 3, 250)
CASES = [(name, sign * magnitude / 9) for name in OPERATIONS for magnitude in range(10) for sign in (1, -1)]
# Smaller than Pillow's filters, odd, square, long.
SIZES = [(32, 32), (17, 23), (23, 17), (3, 3), (2, 5), (1, 1), (40, 1)]


def make_images(height: int, width: int) -> NDArray[np.uint8]:
    """Random, constant, nearly constant, graded, dark, real: uint8 (n, H, W, 3)."""
    rng = np.random.default_rng(0)
    limits = [(0, 256), (0, 1), (255, 256), (7, 8), (0, 2), (254, 256), (100, 140)]
    images = [rng.integers(low, high, (height, width, 3)) for low, high in limits]
    rows, columns = np.arange(height)[:, None], np.arange(width)
    images += [np.stack(np.broadcast_arrays(rows * k % 256, columns * k % 256, 200), -1) for k in (1, 7)]
    images += [255 * rng.random((height, width, 3)) ** power for power in (3, 6)]
    digits = load_digits_lt().train
    for index in (0, 99):
        digit = digits.image(index).resize((width, height), Image.Resampling.BILINEAR)
        images.append(np.asarray(digit) * np.array([1.0, 0.7, 0.9]))
    return np.stack(images).astype(np.uint8)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", SIZES)
def test_every_operation_has_the_pixels_of_pillow(size: tuple[int, int], device: str) -> None:
    operations = DeviceOperations(CASES, size, FILL, torch.device(device))
    images = make_images(*size)
    cases = np.tile(np.arange(-1, len(CASES)), len(images))
    originals = images.repeat(len(CASES) + 1, axis=0)
    pixels = torch.from_numpy(originals.copy()).to(device)
    for kind, positions, rows in operations.groups(cases):
        operations.apply(pixels, kind, torch.from_numpy(positions).to(device), torch.from_numpy(rows).to(device))
    for actual, original, case in zip(pixels.cpu().numpy(), originals, cases, strict=True):
        expected = original
        if case >= 0:
            name, level = CASES[case]
            expected = np.asarray(OPERATIONS[name](Image.fromarray(original), level, FILL))
        np.testing.assert_array_equal(actual, expected, err_msg=str(CASES[case] if case >= 0 else "none"))


@pytest.mark.parametrize("device", DEVICES)
def test_the_weights_of_grey_are_pillows(device: str) -> None:
    """Colour at its lowest level shows a grey that is off by one anywhere."""
    low = CASES.index(("color", -1.0))
    operations = DeviceOperations(CASES, (256, 256), FILL, torch.device(device))
    values = np.arange(256, dtype=np.uint8)
    green, blue = np.meshgrid(values, values)
    images = np.stack([np.stack([np.full_like(green, red), green, blue], -1) for red in range(0, 256, 15)])
    (group,) = operations.groups(np.full(len(images), low))
    pixels = torch.from_numpy(images.copy()).to(device)
    operations.apply(pixels, group.kind, *(torch.from_numpy(array).to(device) for array in group[1:]))
    expected = [np.asarray(OPERATIONS["color"](Image.fromarray(image), -1.0, FILL)) for image in images]
    np.testing.assert_array_equal(pixels.cpu().numpy(), np.stack(expected))


@pytest.mark.parametrize("policy", [CIFAR10_POLICY, IMAGENET_POLICY])
def test_the_policy_chooses_as_image_by_image(policy: tuple[SubPolicy, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    from cbn_deploy.data import autoaugment as by_image

    applied: list[tuple[str, float]] = []

    def noting(name: str) -> Callable[..., Image.Image]:
        def note(image: Image.Image, level: float, _: object) -> Image.Image:
            applied.append((name, level))
            return image

        return note

    monkeypatch.setattr(by_image, "OPERATIONS", {name: noting(name) for name in OPERATIONS})
    numbers = np.stack([np.random.default_rng(seed).random(5) for seed in range(3000)])
    choices = PolicyCases(policy)
    first, second = choices.chosen(numbers)
    image = Image.new("RGB", (1, 1))
    for seed in range(3000):
        applied.clear()
        by_image.autoaugment(image, np.random.default_rng(seed), FILL, policy)
        assert [choices.cases[case] for case in (first[seed], second[seed]) if case >= 0] == applied
