"""Which images calibrate: every class alike, no image of the test set, no image twice."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cbn_deploy.data import load_digits_lt
from cbn_deploy.errors import DataError
from cbn_deploy.runtime.description import ModelDescription, Preprocessing
from export.precision import calibration
from export.precision.calibration import choose_calibration
from export.precision.images import digest

SIZE = 8
NAMES = tuple(str(digit) for digit in range(10))


def description(size: int = SIZE) -> ModelDescription:
    return ModelDescription(
        class_names=NAMES,
        class_counts=(10,) * 10,
        preprocessing=Preprocessing(height=size, width=size),
        architecture="resnet20",
        components=4,
        training_prior=(0.1,) * 10,
    )


def picture(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)


def write(folder: Path, numbers: range, suffix: str = "png") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        Image.fromarray(picture(number)).save(folder / f"{number}.{suffix}")


def chosen_numbers(images: np.ndarray, among: range) -> list[int]:
    names = {digest(picture(number)): number for number in among}
    return sorted(names[digest(image)] for image in images)


def test_the_digits_calibrate_with_their_training_images() -> None:
    chosen = choose_calibration(description(32), None, "digits", set())
    training = load_digits_lt().train
    expected = {training.pixels(i).tobytes() for i in range(len(training))}
    assert {image.tobytes() for image in chosen.images} == expected
    assert chosen.source == "training images of digits-lt"
    assert chosen.in_test_set == 0
    digests = sorted(hashlib.sha256(content).digest() for content in expected)
    assert chosen.sha256 == hashlib.sha256(b"".join(digests)).hexdigest()


def test_rare_classes_are_not_crowded_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "CALIBRATION_IMAGES", 12)
    classes = {"head": range(60), "middle": range(60, 66), "tail": range(66, 68)}
    for name, numbers in classes.items():
        write(tmp_path / name, numbers)
    chosen = choose_calibration(description(), tmp_path, "digits", set())
    found = chosen_numbers(chosen.images, range(68))
    assert [sum(number in numbers for number in found) for numbers in classes.values()] == [5, 5, 2]
    again = choose_calibration(description(), tmp_path, "digits", set())
    assert again.sha256 == chosen.sha256
    assert chosen.source == f"images of {tmp_path.name}"


def test_images_of_the_test_set_are_left_out_under_any_name(tmp_path: Path) -> None:
    write(tmp_path / "a", range(5))
    write(tmp_path / "copies", range(3, 8), suffix="bmp")  # 3 and 4 once more
    test_set = {digest(picture(number)) for number in (0, 4, 99)}
    chosen = choose_calibration(description(), tmp_path, "digits", test_set)
    assert chosen_numbers(chosen.images, range(8)) == [1, 2, 3, 5, 6, 7]
    assert chosen.in_test_set == 3  # 0, and 4 under both names


def test_nothing_but_test_images_is_refused(tmp_path: Path) -> None:
    write(tmp_path, range(3))
    with pytest.raises(DataError, match="All 3 calibration images are in the test set too"):
        choose_calibration(description(), tmp_path, "digits", {digest(picture(number)) for number in range(3)})


def test_a_folder_data_set_calibrates_with_its_training_images(tmp_path: Path) -> None:
    for label, name in enumerate(NAMES):
        write(tmp_path / "train" / name, range(10 * label, 10 * label + 2))
        write(tmp_path / "test" / name, range(10 * label + 2, 10 * label + 3))
    chosen = choose_calibration(description(), None, str(tmp_path), set())
    assert chosen_numbers(chosen.images, range(100)) == sorted(10 * k + i for k in range(10) for i in range(2))
    with pytest.raises(DataError, match="has no training images; give --calibration"):
        choose_calibration(description(), None, str(tmp_path / "test"), set())


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    write(tmp_path, range(2))
    (tmp_path / "broken.png").write_bytes((tmp_path / "1.png").read_bytes()[:60])
    with pytest.raises(DataError, match=r"broken\.png"):
        choose_calibration(description(), tmp_path, "digits", set())
