"""How many views a second one core prepares: weak and strong views and whole normalised batches, 32x32 images.

Run it with ``python benchmarks/augmentation.py [--images N] [--rounds R]``; it prints the median of interleaved rounds.
The images are the digits of ``digits-lt``, so nothing is downloaded; the cost hardly depends on the content.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import numpy as np
import PIL
import torch

from cbn_deploy.data import LongTailedData, ViewConfig, load_digits_lt, training_loader
from cbn_deploy.data.transforms import Views


def main() -> None:
    """Measure and print one line a case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=4000, help="images a round")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = load_digits_lt()
    cases = _cases(data, arguments.images)
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(arguments.rounds):
        for name, run in cases.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    print(f"Python {platform.python_version()}, Pillow {PIL.__version__}, numpy {np.__version__}, one thread")
    for name, times in seconds.items():
        print(f"{name:45s} {arguments.images / statistics.median(times):8.0f} images/s")


def _cases(data: LongTailedData, images: int) -> dict[str, Callable[[], None]]:
    plain = Views(ViewConfig(autoaugment=False, cutout=0), data.preprocessing)
    strong = Views(ViewConfig(), data.preprocessing)

    def views(make: Callable[..., object]) -> Callable[[], None]:
        def run() -> None:
            for index in range(images):
                make(data.train, index % len(data.train), np.random.default_rng((index,)))

        return run

    def batches(two_views: bool) -> Callable[[], None]:
        loader = training_loader(data, ViewConfig(), batch_size=128, seed=0, two_views=two_views)

        def run() -> None:
            done = epoch = 0
            while done < images:
                done += sum(len(batch.labels) for batch in loader.epoch(epoch))
                epoch += 1

        return run

    return {
        "weak view (crop, flip)": views(plain.weak),
        "strong view (crop, flip, AutoAugment, cutout)": views(strong.strong),
        "batches of the strong view": batches(two_views=False),
        "batches of both views": batches(two_views=True),
    }


if __name__ == "__main__":
    main()
