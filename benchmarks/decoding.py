"""How many photographs a second the data loader decodes, crops and resizes, by number of worker processes.

Run it with ``python benchmarks/decoding.py [--workers 0 1 2] [--images N] [--rounds R] [--json FILE]``. It makes its
own JPEGs: noise whose spectrum falls as photographs' do, at ImageNet's usual 500 x 375 pixels. "train" is decode,
random resized crop to 224 x 224 (8 % to all of the area) and mirroring; "train, two views" makes the weak and the
strong view, as dual-path learning needs them; "evaluate" is decode, resize to 256, centre crop of 224. Given is the
median of the rounds, which take turns; starting and ending the workers is not in it. "parts" are single steps in one
process, in milliseconds of the processor, which another process's load hardly changes.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from cbn_deploy.atomic import atomic_write_bytes
from cbn_deploy.data import FileImageSet, LongTailedData, ViewConfig, evaluation_batches, training_loader
from cbn_deploy.data.transforms import random_box
from cbn_deploy.machine import describe_machine, is_busy
from cbn_deploy.runtime import Preprocessing
from cbn_deploy.runtime.preprocessing import decode_image, resize

IMAGENET = Preprocessing(height=224, width=224, resize_shorter=256)
VIEWS = ViewConfig(crop="resized", min_area=0.08, autoaugment=False, cutout=0)
# Name -> (width, height); ImageNet's usual size, iNaturalist's largest, a phone's.
SIZES = {"500x375": (500, 375), "800x600": (800, 600), "4000x3000": (4000, 3000)}
BATCH = 64
# Different files; more would only fill the disk, and the page cache holds them all either way.
FILES = 128
GPU_RATES = (500, 1000, 2500, 5000)


def main() -> None:
    """Make the images, measure, print; with ``--json`` also write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=1024, help="images a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    machine = describe_machine(["pillow", "torch", "numpy"])
    if is_busy(machine):
        print(f"The machine is busy (load {machine['load_average']:.1f}): read the ratios, not the figures.")
    with tempfile.TemporaryDirectory() as folder:
        data, kilobytes = _photographs(Path(folder), arguments.images)
        rows = _loaders(data, arguments.workers, arguments.rounds)
    parts = _parts(arguments.rounds)
    _print(rows, parts, machine)
    if arguments.json is not None:
        settings = {"images": arguments.images, "rounds": arguments.rounds, "files": FILES, "kilobytes": kilobytes}
        report = {"machine": machine, **settings, "needs": _needs(rows), "rows": rows, "parts": parts}
        atomic_write_bytes(arguments.json, (json.dumps(report, indent=1) + "\n").encode())


def encoded_photograph(size: tuple[int, int], seed: int) -> bytes:
    """A JPEG of noise in octaves, each 0.78 as strong as the coarser one before: at quality 90 about 4.5 bits a pixel.

    That is what ImageNet's files have on average; decoding takes the longer, the more bits there are.
    """
    rng = np.random.default_rng(seed)
    pixels = np.zeros((size[1], size[0], 3), np.float32)
    for octave in range(1, 9):
        cells = tuple(max(side >> (8 - octave), 2) for side in size)
        noise = rng.integers(0, 256, (cells[1], cells[0], 3), dtype=np.uint8)
        layer = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)
        pixels += (np.asarray(layer, np.float32) - 127.5) * 0.78 ** (octave - 1)
    content = io.BytesIO()
    Image.fromarray((pixels + 127.5).clip(0, 255).astype(np.uint8)).save(content, "JPEG", quality=90)
    return content.getvalue()


def _photographs(folder: Path, images: int) -> tuple[LongTailedData, float]:
    """A training set of ``images`` photographs, and the mean size of a file."""
    contents = [encoded_photograph(SIZES["500x375"], seed) for seed in range(min(FILES, images))]
    for number, content in enumerate(contents):
        (folder / f"{number}.jpg").write_bytes(content)
    paths = [folder / f"{number % len(contents)}.jpg" for number in range(images)]
    image_set = FileImageSet(paths, np.arange(images) % 2, IMAGENET)
    data = LongTailedData(
        name="photographs", train=image_set, test=image_set, class_names=("a", "b"), preprocessing=IMAGENET
    )
    return data, statistics.mean(map(len, contents)) / 1000


def _loaders(data: LongTailedData, worker_counts: list[int], rounds: int) -> list[dict[str, Any]]:
    cases: dict[tuple[str, int], Callable[[int], Iterator[object]]] = {}
    for workers in worker_counts:
        for name, two_views in (("train", False), ("train, two views", True)):
            loader = training_loader(data, VIEWS, batch_size=BATCH, seed=0, workers=workers, two_views=two_views)
            cases[name, workers] = loader.epoch
        cases["evaluate", workers] = lambda _, workers=workers: evaluation_batches(
            data.test, IMAGENET, BATCH, workers=workers
        )
    rates: dict[tuple[str, int], list[float]] = {case: [] for case in cases}
    for batches in cases.values():
        _count(batches(0))
    for epoch in range(1, rounds + 1):
        for case, batches in cases.items():
            rates[case].append(_rate(batches(epoch), len(data.train)))
    return [
        {"case": name, "workers": workers, "images_per_second": statistics.median(found), "rounds": found}
        for (name, workers), found in rates.items()
    ]


def _count(batches: Iterator[object], stop: int | None = None) -> int:
    return sum(1 for _ in itertools.islice(batches, stop))


def _rate(batches: Iterator[object], images: int) -> float:
    """Images a second from the first batch, whose wait has the start of the workers in it, to the last."""
    timed = math.ceil(images / BATCH) - 1
    next(batches)
    start = time.perf_counter()
    _count(batches, timed)
    seconds = time.perf_counter() - start
    _count(batches)
    return (images - BATCH) / seconds


def _parts(rounds: int) -> list[dict[str, Any]]:
    """Milliseconds an image of single steps, in one process."""
    found: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        cases = [case for size in SIZES for case in _steps(Path(folder), size)]
        for _ in range(max(rounds, 3)):
            for size, name, run in cases:
                repeats = 3 if size == "4000x3000" else 30
                start = time.process_time()
                for number in range(repeats):
                    run(number)
                found.setdefault((size, name), []).append((time.process_time() - start) / repeats * 1000)
    return [
        {"size": size, "step": name, "milliseconds": statistics.median(times)} for (size, name), times in found.items()
    ]


def _steps(folder: Path, size: str) -> list[tuple[str, str, Callable[[int], object]]]:
    content = encoded_photograph(SIZES[size], 0)
    path = folder / f"{size}.jpg"
    path.write_bytes(content)
    images = FileImageSet([path], np.zeros(1, np.int64), IMAGENET)

    def crop(number: int, side: int, min_area: float) -> object:
        rng = np.random.default_rng(number)
        return images.parts(0, [lambda w, h: random_box(w, h, rng, min_area)], (side, side))

    def crop_in_full(number: int, side: int, min_area: float) -> object:
        image = decode_image(content)
        box = random_box(*image.size, np.random.default_rng(number), min_area)
        return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR, box=box))

    return [
        (size, "decode", lambda _: decode_image(content)),
        (size, "decode, then crop to 224", lambda n: crop_in_full(n, 224, 0.08)),
        (size, "crop to 224, decoded at a fraction", lambda n: crop(n, 224, 0.08)),
        (size, "decode, then crop to 64", lambda n: crop_in_full(n, 64, 0.25)),
        (size, "crop to 64, decoded at a fraction", lambda n: crop(n, 64, 0.25)),
        (size, "decode, resize to 256, crop 224", lambda _: resize(decode_image(content), IMAGENET)),
    ]


def _needs(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Workers (each a core of this machine) that feed a GPU which trains so many images a second."""
    best = {
        name: max(row["images_per_second"] / row["workers"] for row in rows if row["case"] == name and row["workers"])
        for name in ("train", "train, two views")
        if any(row["case"] == name and row["workers"] for row in rows)
    }
    return [
        {"case": name, "gpu_images_per_second": rate, "workers": math.ceil(rate / per_worker)}
        for name, per_worker in best.items()
        for rate in GPU_RATES
    ]


def _print(rows: list[dict[str, Any]], parts: list[dict[str, Any]], machine: dict[str, Any]) -> None:
    print(f"{machine['cpu']}, {machine['available_cpus']} CPUs, {machine['packages']}")
    for row in rows:
        print(f"{row['case']:20s} {row['workers']:2d} workers {row['images_per_second']:8.0f} images/s")
    for need in _needs(rows):
        print(f"a GPU of {need['gpu_images_per_second']} images/s ({need['case']}) takes {need['workers']} workers")
    for part in parts:
        print(f"{part['size']:10s} {part['step']:36s} {part['milliseconds']:8.2f} ms")


if __name__ == "__main__":
    main()
