"""How many views a second one core prepares, and the training device: weak and strong views, normalised batches, 32x32.

Run it with ``python benchmarks/augmentation.py [--images N] [--rounds R] [--device D] [--json FILE]``. Given is the
median of interleaved rounds: for a core in images a second of processor time, for the device (CUDA if there is one) in
images a second until it has done all of it, an epoch of 12,406 images in batches of 128. Both are first checked to give
the same pixels. The images are the digits of ``digits-lt``, over and over, so nothing is downloaded; the cost hardly
depends on the content.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from cbn_deploy.atomic import atomic_write_bytes
from cbn_deploy.data import (
    ArrayImageSet,
    LongTailedData,
    TrainingLoader,
    ViewConfig,
    load_digits_lt,
    training_loader,
)
from cbn_deploy.data.draws import STRONG, uniforms, view_generator
from cbn_deploy.data.transforms import Views
from cbn_deploy.machine import describe_machine

BATCH = 128
EPOCH = 12_406  # as CIFAR-10-LT's at rho 100
CPU = torch.device("cpu")

Cases = dict[str, tuple[int, Callable[[], object]]]
"""What is measured -> images it handles and how to run it."""


def main() -> None:
    """Measure and print one line a case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=4000, help="images a round and core")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(arguments.device)
    data = load_digits_lt()
    _check_the_same_batches(data, device)
    core = _core_cases(data, arguments.images)
    on_device = _device_cases(_repeated(data, EPOCH), device)
    rates = _rates(core, arguments.rounds, time.process_time) | _rates(on_device, arguments.rounds, time.perf_counter)
    machine = describe_machine(["pillow", "torch", "numpy"])
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else machine["cpu"]
    print(f"{machine['cpu']}, {machine['packages']}, one thread; device: {name}")
    for case, rate in rates.items():
        print(f"{case:52s} {rate:8.0f} images/s")
    if arguments.json is not None:
        report = {
            "machine": machine,
            "device": name,
            "images": arguments.images,
            "rounds": arguments.rounds,
            "images_per_second": rates,
        }
        atomic_write_bytes(arguments.json, (json.dumps(report, indent=1) + "\n").encode())


def _rates(cases: Cases, rounds: int, clock: Callable[[], float]) -> dict[str, float]:
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _, run in cases.values():
        run()  # memory and kernels are made on first use
    for _ in range(rounds):
        for name, (_, run) in cases.items():
            start = clock()
            run()
            seconds[name].append(clock() - start)
    return {name: cases[name][0] / statistics.median(times) for name, times in seconds.items()}


def _loader(data: LongTailedData, device: torch.device, *, two_views: bool, device_views: bool) -> TrainingLoader:
    return training_loader(
        data, ViewConfig(), batch_size=BATCH, seed=0, two_views=two_views, device=device, device_views=device_views
    )


def _check_the_same_batches(data: LongTailedData, device: torch.device) -> None:
    one_by_one = _loader(data, CPU, two_views=True, device_views=False)
    together = _loader(data, device, two_views=True, device_views=True)
    for epoch in range(5):
        for expected, batch in zip(one_by_one.epoch(epoch), together.epoch(epoch), strict=True):
            actual = batch.to(CPU)
            for name in ("strong", "weak", "labels"):
                if not torch.equal(getattr(actual, name), getattr(expected, name)):
                    raise SystemExit(f"epoch {epoch}: {name} differs between the device and the core")


def _repeated(data: LongTailedData, images: int) -> LongTailedData:
    indices = np.arange(images) % len(data.train)
    pixels = np.stack([data.train.pixels(index) for index in indices.tolist()])
    return LongTailedData(
        name=data.name,
        train=ArrayImageSet(pixels, data.train.labels[indices]),
        test=data.test,
        class_names=data.class_names,
        preprocessing=data.preprocessing,
    )


def _core_cases(data: LongTailedData, images: int) -> Cases:
    views = Views(ViewConfig(), data.preprocessing)
    indices = np.arange(images)

    def one_by_one(make: Callable[..., object]) -> Callable[[], None]:
        def run() -> None:
            for index in range(images):
                make(data.train, index % len(data.train), np.random.default_rng((index,)))

        return run

    def draw_one_by_one() -> None:
        for index in range(images):
            view_generator(STRONG, 0, 0, index, 0).random(10)

    def batches(two_views: bool) -> Callable[[], None]:
        loader = _loader(data, CPU, two_views=two_views, device_views=False)
        return lambda: _first_images(loader, images)

    return {
        "weak view (crop, flip)": (images, one_by_one(views.weak)),
        "strong view (crop, flip, AutoAugment, cutout)": (images, one_by_one(views.strong)),
        "its random numbers, image by image": (images, draw_one_by_one),
        "its random numbers, together": (images, lambda: uniforms(STRONG, 0, 0, indices, 0 * indices, 10)),
        "batches of the strong view": (images, batches(two_views=False)),
        "batches of both views": (images, batches(two_views=True)),
    }


def _first_images(loader: TrainingLoader, images: int) -> None:
    done = epoch = 0
    while done < images:
        done += sum(len(batch.labels) for batch in loader.epoch(epoch))
        epoch += 1


def _device_cases(data: LongTailedData, device: torch.device) -> Cases:
    strong = _loader(data, device, two_views=False, device_views=True)
    both = _loader(data, device, two_views=True, device_views=True)

    def until_done(make: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            make()
            if device.type == "cuda":
                torch.cuda.synchronize(device)

        return run

    def batches(loader: TrainingLoader) -> None:
        for _ in loader.epoch(0):
            pass

    cases = {
        "device: batches of the strong view": until_done(lambda: batches(strong)),
        "device: batches of both views": until_done(lambda: batches(both)),
    }
    return {name: (len(data.train), run) for name, run in cases.items()}


if __name__ == "__main__":
    main()
