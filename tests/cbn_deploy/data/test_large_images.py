"""A user's own images may be larger than what a server takes from strangers, up to a bound."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from cbn_deploy.data import (
    ArrayImageSet,
    DataConfig,
    FileImageSet,
    ImageSet,
    LongTailedData,
    ViewConfig,
    check_data,
    evaluation_batches,
    training_loader,
)
from cbn_deploy.data.image_set import OWN_IMAGE_LIMITS, read_image
from cbn_deploy.errors import DataError, ImageTooLargeError
from cbn_deploy.runtime import Preprocessing
from cbn_deploy.runtime.preprocessing import EncodedImage, ImageLimits
from tests.hostile_images import png, png_header

SMALL = Preprocessing(height=16, width=16)
CROPPED = Preprocessing(height=16, width=16, resize_shorter=256)
UPLOADS = ImageLimits()


def whole(width: int, height: int) -> tuple[int, int, int, int]:
    return 0, 0, width, height


def promise(width: int, height: int) -> bytes:
    """A PNG of which there is only the header."""
    return png(png_header(width, height), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))


def test_a_large_photograph_is_trained_on_and_evaluated(tmp_path: Path) -> None:
    size = (8256, 5504)
    assert size[0] * size[1] > UPLOADS.max_pixels
    path = tmp_path / "camera.jpg"
    Image.new("L", size, 90).save(path)
    images = FileImageSet([path], np.zeros(1, np.int64), SMALL)
    (part,) = images.parts(0, [whole], (16, 16))
    assert (part == 90).all()
    assert (images.pixels(0) == 90).all()


def test_a_large_file_without_compression_is_read(tmp_path: Path) -> None:
    path = tmp_path / "scan.bmp"
    Image.new("RGB", (2800, 2048), (10, 20, 30)).save(path)
    assert path.stat().st_size > UPLOADS.max_bytes
    assert read_image(path).getpixel((2799, 2047)) == (10, 20, 30)


def test_pillow_does_not_warn_of_what_is_accepted() -> None:
    height = OWN_IMAGE_LIMITS.max_pixels // 5
    assert 5 * height == OWN_IMAGE_LIMITS.max_pixels
    EncodedImage(promise(5, height), OWN_IMAGE_LIMITS)


@pytest.mark.parametrize("used", ["training", "evaluation"])
def test_there_is_a_bound_and_it_says_what_to_do(tmp_path: Path, used: str) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(promise(OWN_IMAGE_LIMITS.max_pixels + 1, 1))
    with pytest.raises(ImageTooLargeError):
        read_image(path)
    images = FileImageSet([path], np.zeros(1, np.int64), SMALL)
    with pytest.raises(DataError, match=r"bomb\.png: The image has .* Resize it; --check lists every such file"):
        images.parts(0, [whole], (16, 16)) if used == "training" else images.pixels(0)


@pytest.mark.parametrize("used", ["training", "evaluation", "doctor"])
def test_a_film_among_the_images_is_not_read(tmp_path: Path, used: str, monkeypatch: pytest.MonkeyPatch) -> None:
    film = tmp_path / "train" / "a" / "film.jpg"
    film.parent.mkdir(parents=True)
    film.touch()
    os.truncate(film, OWN_IMAGE_LIMITS.max_bytes + 1)  # takes no space on the disk
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail(f"{path} was read"))
    sentence = "The image has 400000001 bytes; at most 400000000 are accepted."
    if used == "doctor":
        (too_large,) = check_data(DataConfig(source="image-folder"), tmp_path).too_large
        assert (too_large.name, too_large.reason) == ("train/a/film.jpg", sentence)
    else:
        images = FileImageSet([film], np.zeros(1, np.int64), SMALL)
        with pytest.raises(DataError, match=rf"^/.*/film\.jpg: {sentence} Resize it; --check lists every such file\.$"):
            images.parts(0, [whole], (16, 16)) if used == "training" else images.pixels(0)


@pytest.fixture
def elongated(tmp_path: Path) -> FileImageSet:
    """Two files of which the second is one line of pixels. None is cached, so workers decode them."""
    paths = [tmp_path / "square.png", tmp_path / "line.png"]
    for path, size in zip(paths, [(20, 20), (200_000, 1)], strict=True):
        Image.new("RGB", size).save(path)
    return FileImageSet(paths, np.arange(2), CROPPED)


def read_all(use: str, images: ImageSet, preprocessing: Preprocessing, workers: int = 0) -> None:
    if use == "evaluation":
        list(evaluation_batches(images, preprocessing, 2, workers=workers))
    else:
        data = LongTailedData(
            name="test", train=images, test=images, class_names=("a", "b"), preprocessing=preprocessing
        )
        list(training_loader(data, ViewConfig(crop="padded"), batch_size=2, seed=0, workers=workers).epoch(0))


@pytest.mark.parametrize("use", ["training", "evaluation"])
@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_too_elongated_to_be_resized_is_named(elongated: FileImageSet, use: str, workers: int) -> None:
    sentence = r"^/.*/line\.png: The image has 200000 x 1 pixels, too elongated .*; crop it first\. --check lists .*\.$"
    with pytest.raises(DataError, match=sentence):
        read_all(use, elongated, CROPPED, workers)


def test_an_elongated_image_is_named_where_the_set_was_made_for_another_size(elongated: FileImageSet) -> None:
    other = Preprocessing(height=32, width=32, resize_shorter=256)
    with pytest.raises(DataError, match=r"^/.*/line\.png: .* too elongated"):
        read_all("evaluation", elongated, other)
    in_memory = ArrayImageSet(np.zeros((2, 1, 2000, 3), np.uint8), np.arange(2), numbers=np.array([7, 8]))
    with pytest.raises(DataError, match=r"^image 7: .* too elongated"):
        read_all("evaluation", in_memory, other)


class UnnamedErrors(FileImageSet):
    """Raises what is no ``DataError``, as any new check of an image may."""

    def pixels(self, index: int) -> NDArray[np.uint8]:
        raise ImageTooLargeError(f"Image {index} is too large.")


@pytest.mark.parametrize("use", ["training", "evaluation"])
def test_any_error_in_a_worker_is_one_sentence(elongated: FileImageSet, use: str) -> None:
    images = UnnamedErrors(elongated.paths, elongated.labels, CROPPED)
    with pytest.raises(ImageTooLargeError, match=r"^Image [01] is too large\.$"):
        read_all(use, images, CROPPED, workers=1)
