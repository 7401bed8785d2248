"""How many views a second one core prepares: weak and strong views and whole normalised batches, 32x32 images.

Run it with ``python benchmarks/augmentation.py [--images N] [--rounds R] [--json FILE]``. Given is the median of
interleaved rounds, in images a second of processor time. The images are the digits of ``digits-lt``, so nothing is
downloaded; the cost hardly depends on the content.

"a batch at a time" is crop, flip and cutout as a few torch operations on the whole batch, from the same draws; it is
checked to give the same pixels. What it could save at most is the difference to "the draws alone", which either way
needs: that is why the loader does not offer it (see docs/training.md).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cbn_deploy.atomic import atomic_write_bytes
from cbn_deploy.data import LongTailedData, ViewConfig, load_digits_lt, training_loader
from cbn_deploy.data.transforms import Views
from cbn_deploy.machine import describe_machine

NO_AUTOAUGMENT = ViewConfig(autoaugment=False)
BATCH = 128


def main() -> None:
    """Measure and print one line a case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=4000, help="images a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = load_digits_lt()
    _check_the_same_pixels(data)
    cases = _cases(data, arguments.images)
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(arguments.rounds):
        for name, run in cases.items():
            start = time.process_time()
            run()
            seconds[name].append(time.process_time() - start)
    rates = {name: arguments.images / statistics.median(times) for name, times in seconds.items()}
    machine = describe_machine(["pillow", "torch", "numpy"])
    print(f"{machine['cpu']}, {machine['packages']}, one thread")
    for name, rate in rates.items():
        print(f"{name:52s} {rate:8.0f} images/s")
    if arguments.json is not None:
        report = {
            "machine": machine,
            "images": arguments.images,
            "rounds": arguments.rounds,
            "images_per_second": rates,
        }
        atomic_write_bytes(arguments.json, (json.dumps(report, indent=1) + "\n").encode())


class BatchViews:
    """Crop, flip and cutout of a whole batch of uint8 images in torch, on any device; draws as :class:`Views` does.

    Args:
        config: padded crop, no AutoAugment.
        images: uint8 (n, H, W, 3), on the device.
        fill: colour of what cutout hides.
    """

    def __init__(self, config: ViewConfig, images: Tensor, fill: tuple[int, int, int]) -> None:
        self.config = config
        self.images = images
        self.fill = torch.tensor(fill, dtype=torch.uint8, device=images.device)

    def draws(self, rngs: Sequence[np.random.Generator]) -> NDArray[np.float64]:
        """What each image's generator gives: crop (2), flip (1), cutout (2)."""
        kinds = 2 + self.config.flip + 2 * bool(self.config.cutout)
        return np.stack([rng.random(kinds) for rng in rngs])

    def __call__(self, indices: Tensor, draws: NDArray[np.float64]) -> Tensor:
        """Uint8 (B, H, W, 3), the pixels that :class:`Views` makes one by one."""
        device, padding = self.images.device, self.config.padding
        height, width = self.images.shape[1:3]
        columns_of = iter(torch.from_numpy(draws).to(device).unbind(1))
        top, left = ((next(columns_of) * (2 * padding + 1)).long() - padding for _ in range(2))
        across = torch.arange(width, device=device).expand(len(indices), width)
        if self.config.flip:
            across = torch.where((next(columns_of) < 0.5)[:, None], across.flip(1), across)
        rows = top[:, None] + torch.arange(height, device=device)
        columns = left[:, None] + across
        inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
        rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
        pixels = self.images[indices[:, None, None], rows[:, :, None], columns[:, None, :]] * inside[..., None]
        if not self.config.cutout:
            return pixels
        side = self.config.cutout
        row, column = ((next(columns_of) * length).long() - side // 2 for length in (height, width))
        hidden_rows = torch.arange(height, device=device) - row[:, None]
        hidden_columns = torch.arange(width, device=device) - column[:, None]
        hidden = ((hidden_rows >= 0) & (hidden_rows < side))[:, :, None]
        hidden = hidden & ((hidden_columns >= 0) & (hidden_columns < side))[:, None, :]
        return torch.where(hidden[..., None], self.fill, pixels)


def _check_the_same_pixels(data: LongTailedData) -> None:
    for config in (NO_AUTOAUGMENT, replace(NO_AUTOAUGMENT, cutout=0), replace(NO_AUTOAUGMENT, flip=False, padding=9)):
        views, batch = Views(config, data.preprocessing), _batch_views(data, config)
        indices = np.arange(200)
        together = batch(torch.from_numpy(indices), batch.draws([np.random.default_rng((i,)) for i in indices]))
        for index in indices.tolist():
            alone = views.strong(data.train, index, np.random.default_rng((index,)))
            np.testing.assert_array_equal(together[index].numpy(), alone)


def _batch_views(data: LongTailedData, config: ViewConfig) -> BatchViews:
    images = torch.from_numpy(np.stack([data.train.pixels(i) for i in range(len(data.train))]))
    return BatchViews(config, images, Views(config, data.preprocessing).fill)


def _cases(data: LongTailedData, images: int) -> dict[str, Callable[[], None]]:
    plain, hidden, strong = (
        Views(config, data.preprocessing)
        for config in (replace(NO_AUTOAUGMENT, cutout=0), NO_AUTOAUGMENT, replace(NO_AUTOAUGMENT, autoaugment=True))
    )

    def views(make: Callable[..., object]) -> Callable[[], None]:
        def run() -> None:
            for index in range(images):
                make(data.train, index % len(data.train), np.random.default_rng((index,)))

        return run

    draws, together = _batch_cases(data, images)
    return {
        "weak view (crop, flip)": views(plain.weak),
        "crop, flip, cutout": views(hidden.strong),
        "crop, flip, cutout, a batch at a time": together,
        "the draws alone": draws,
        "strong view (crop, flip, AutoAugment, cutout)": views(strong.strong),
        "batches of the strong view": _loader_case(data, images, two_views=False),
        "batches of both views": _loader_case(data, images, two_views=True),
    }


def _batch_cases(data: LongTailedData, images: int) -> tuple[Callable[[], None], Callable[[], None]]:
    """The draws alone, and draws and views of whole batches."""
    views = _batch_views(data, NO_AUTOAUGMENT)

    def draws(start: int) -> NDArray[np.float64]:
        return views.draws([np.random.default_rng((index,)) for index in range(start, min(start + BATCH, images))])

    def draws_alone() -> None:
        for start in range(0, images, BATCH):
            draws(start)

    def together() -> None:
        for start in range(0, images, BATCH):
            drawn = draws(start)
            views(torch.arange(start, start + len(drawn)) % len(data.train), drawn)

    return draws_alone, together


def _loader_case(data: LongTailedData, images: int, two_views: bool) -> Callable[[], None]:
    loader = training_loader(data, ViewConfig(), batch_size=BATCH, seed=0, two_views=two_views)

    def run() -> None:
        done = epoch = 0
        while done < images:
            done += sum(len(batch.labels) for batch in loader.epoch(epoch))
            epoch += 1

    return run


if __name__ == "__main__":
    main()
