"""Training runs that take seconds: real digits as image files, ResNet-20 on 16 x 16 pixels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from PIL import Image

from tests.checkpoints import digit_pixels

TRAIN_COUNTS = {"eight": 14, "one": 9, "zero": 5}
TEST_IMAGES = 6
EPOCHS = 3
SETTINGS = (
    *("model=resnet20", "loss.paths=compound+split", "data.image_size=16", "views.cutout=4"),
    *("batch_size=8", f"epochs={EPOCHS}", "lr=0.02"),
)
_DIGIT = {"eight": 8, "one": 1, "zero": 0}


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums in one order, so that runs can be compared bit by bit, also across processes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def write_photos(folder: Path) -> None:
    """``train/CLASS/*.png`` with :data:`TRAIN_COUNTS` and ``test/CLASS/*.png`` with :data:`TEST_IMAGES` images."""
    pixels, labels = digit_pixels(400)
    for name, count in TRAIN_COUNTS.items():
        images = pixels[labels == _DIGIT[name]]
        for split, chosen in (("train", images[:count]), ("test", images[count : count + TEST_IMAGES])):
            (folder / split / name).mkdir(parents=True)
            for number, image in enumerate(chosen):
                Image.fromarray(image).save(folder / split / name / f"{number}.png")
