from __future__ import annotations

import io
import os
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from cbn_deploy.data import DataConfig, DataReport, check_data, load_data
from cbn_deploy.errors import DataError

FOLDER = DataConfig(source="image-folder")


def write_image(path: Path, seed: int, size: tuple[int, int] = (20, 16)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises width x height pixels and has none."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    seed = 0
    for label, train, test in (("ant", 120, 2), ("bee", 30, 2), ("cat", 6, 2)):
        for split, count in (("train", train), ("test", test)):
            for number in range(count):
                write_image(tmp_path / split / label / f"{number}.png", seed := seed + 1)
    return tmp_path


def render(report: DataReport) -> str:
    console = Console(file=io.StringIO(), width=160)
    report.render(console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_healthy_folder(folder: Path) -> None:
    progress: list[tuple[int, int]] = []
    report = check_data(FOLDER, folder, lambda done, total: progress.append((done, total)))
    assert [(c.name, c.train, c.test) for c in report.classes] == [("ant", 120, 2), ("bee", 30, 2), ("cat", 6, 2)]
    assert report.rho == 20
    assert report.shots == {"many": 1, "medium": 1, "few": 1}
    assert report.sizes == (((20, 16), 162),)
    assert report.kinds == (("PNG RGB", 162),)
    assert report.problems == ()
    assert progress == [(done, 162) for done in range(1, 163)]
    assert "No problems found" in render(report)


def test_bad_files_are_reported_and_not_counted(folder: Path) -> None:
    ants = folder / "train" / "ant"
    (ants / "0.png").write_bytes(b"")
    (ants / "1.png").write_bytes((ants / "1.png").read_bytes()[:300])
    (ants / "2.png").write_bytes(png_header(100, 100))
    (ants / "3.png").write_text("<html>not found</html>")
    (ants / "4.png").unlink()
    (ants / "4.png").symlink_to(ants / "nowhere.png")
    report = check_data(FOLDER, folder)
    reasons = {file.name: file.reason for file in report.unreadable}
    assert set(reasons) == {f"train/ant/{number}.png" for number in range(5)}
    assert "No such file" in reasons["train/ant/4.png"]
    assert "empty" in reasons["train/ant/0.png"]
    assert "truncated" in reasons["train/ant/1.png"]
    assert "damaged" in reasons["train/ant/2.png"]
    assert "not a readable" in reasons["train/ant/3.png"]
    assert report.classes[0].train == 115
    assert any(
        problem.startswith("5 files are unreadable; replace or remove them before training (train/ant/0.png")
        for problem in report.problems
    )
    assert f"unreadable: train/ant/2.png: {reasons['train/ant/2.png']}" in render(report)


def test_images_that_are_too_large_are_to_be_resized(folder: Path) -> None:
    (folder / "train" / "ant" / "0.png").write_bytes(png_header(10_000, 10_000))
    report = check_data(FOLDER, folder)
    assert report.unreadable == ()
    assert report.problems == ("1 image is too large; resize or remove them before training (train/ant/0.png).",)
    assert f"too large: train/ant/0.png: {report.too_large[0].reason}" in render(report)
    assert "pixels" in report.too_large[0].reason


@pytest.mark.parametrize("split", ["train", "test"])
def test_images_that_are_too_elongated_for_the_recipe_are_a_problem(folder: Path, split: str) -> None:
    Image.new("RGB", (200_000, 1)).save(folder / split / "ant" / "line.png")
    report = check_data(DataConfig(source="image-folder", resize_shorter=256), folder)
    assert report.problems == (f"1 image is too large; resize or remove them before training ({split}/ant/line.png).",)
    assert "200000 x 1 pixels, too elongated to be resized; crop it first." in report.too_large[0].reason
    assert check_data(FOLDER, folder).problems == ()  # squeezed into a square


def test_a_listed_file_that_is_missing_is_unreadable(folder: Path) -> None:
    (folder / "train.txt").write_text("train/ant/0.png ant\ntrain/bee/0.png bee\ntrain/bee/nowhere.png bee\n")
    report = check_data(FOLDER, folder)
    assert [(file.name, "No such file" in file.reason) for file in report.unreadable] == [
        ("train/bee/nowhere.png", True)
    ]


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        (["train/a/0.png", "train/b/0.png", "train/c/0.png"], "No class has two images"),
        (["train/a/0.png", "train/a/1.png", "train/b/0.png", "test/a/", "test/b/"], "is empty; add images"),
        (["train/a/0.png", "train/a/1.png", "train/b/"], "no training images; add some or remove the class (b)."),
        (["train/a/0.png", "train/a/1.png", "test/b/0.png"], "no training images; add some or remove the class (b)."),
        (["train/a/0.png", "train/a/1.png"], "has 1 class; a classifier needs at least 2"),
        (["train/a/0.png", "train/a/1.png", "test/a/0.png"], "has 1 class; a classifier needs at least 2"),
    ],
)
def test_what_training_refuses_is_a_problem(tmp_path: Path, files: list[str], sentence: str) -> None:
    for seed, name in enumerate(files):
        if name.endswith("/"):
            (tmp_path / name).mkdir(parents=True)
        else:
            write_image(tmp_path / name, seed)
    with pytest.raises(DataError) as error:
        load_data(FOLDER, tmp_path)
    assert sentence in str(error.value)
    assert any(sentence in problem for problem in check_data(FOLDER, tmp_path).problems)


def test_copies_are_found_by_pixels_whatever_the_file_is_called(folder: Path) -> None:
    shutil.copy(folder / "train" / "ant" / "5.png", folder / "train" / "ant" / "copy.png")
    with Image.open(folder / "train" / "ant" / "6.png") as image:
        image.save(folder / "train" / "bee" / "other.bmp")
    with Image.open(folder / "train" / "cat" / "0.png") as image:
        image.save(folder / "test" / "cat" / "leak.webp", lossless=True)
    write_image(folder / "train" / "cat" / "same_bytes_other_shape.png", 1, size=(16, 20))
    report = check_data(FOLDER, folder)
    assert sorted(group.names for group in report.duplicates) == [
        ("train/ant/5.png", "train/ant/copy.png"),
        ("train/ant/6.png", "train/bee/other.bmp"),
    ]
    assert [group.names for group in report.leaks] == [("train/cat/0.png", "test/cat/leak.webp")]
    assert [(group.names[0], group.labels) for group in report.conflicts] == [("train/ant/6.png", ("ant", "bee"))]
    sentences = " ".join(report.problems)
    assert "1 image is in train and in test, which flatters the result" in sentences
    assert "2 images are in train more than once" in sentences
    assert "1 image is filed under several classes" in sentences


def test_classes_in_one_split_only_and_very_small_ones(folder: Path) -> None:
    write_image(folder / "train" / "dog" / "0.png", 1001)
    write_image(folder / "test" / "eel" / "0.png", 1002)
    report = check_data(FOLDER, folder)
    assert report.rho is None
    assert report.problems == ("1 class has no training images; add some or remove the class (eel).",)
    # What a long tail brings with it is no problem that anyone could mend.
    assert report.notes == (
        "1 class has no test images, so its recall stays unknown (dog).",
        "1 class has fewer than 5 training images; expect low recall (dog).",
    )
    text = render(report)
    assert "undefined" in text
    assert all(f"Note: {note}" in text for note in report.notes)


def test_images_of_a_kind_that_is_not_read_are_a_problem(folder: Path) -> None:
    (folder / "train" / "cat" / "scan.TIFF").write_bytes(b"")
    (folder / "train" / "cat" / "Thumbs.db").write_bytes(b"")
    problems = check_data(FOLDER, folder).problems
    assert len(problems) == 1
    assert problems[0].startswith("1 image is of a kind that is not read")
    assert "scan.TIFF" in problems[0]


def test_hidden_folders_with_images_beside_the_classes_are_named(folder: Path) -> None:
    (folder / "train" / ".22 rifle").mkdir()
    (folder / "train" / ".22 rifle" / "notes.txt").write_text("no image")
    assert check_data(FOLDER, folder).notes == ()
    write_image(folder / "train" / ".22 rifle" / "near" / "0.png", 1001)
    write_image(folder / "test" / ".22 rifle" / "0.png", 1002)
    report = check_data(FOLDER, folder)
    assert report.problems == ()
    assert report.notes == (
        "2 folders with images are left out for the dot that the name begins with; rename what is a class "
        "(train/.22 rifle, test/.22 rifle).",
    )


def test_without_test_images(folder: Path) -> None:
    shutil.rmtree(folder / "test")
    write_image(folder / "train" / "dog" / "0.png", 1001)
    (folder / "train" / "dog" / "notes.txt").write_text("x")
    report = check_data(FOLDER, folder)
    assert not report.has_test
    assert report.ignored == ("train/dog/notes.txt",)
    assert report.problems == ()
    assert any("none is held out and its recall stays unknown (dog)" in note for note in report.notes)
    assert not any("no test images, so" in note for note in report.notes)
    text = render(report)
    assert "are held out" in text
    assert "1 file(s) ignored" in text


def test_counts_are_those_after_the_hold_out(folder: Path) -> None:
    shutil.rmtree(folder / "test")
    report = check_data(FOLDER, folder)
    data = load_data(FOLDER, folder)
    assert tuple(c.train for c in report.classes) == data.class_counts == (90, 23, 5)
    assert [c.test for c in report.classes] == np.bincount(data.test.labels).tolist()
    assert report.rho == 18
    assert report.shots == {"many": 0, "medium": 2, "few": 1}
    assert "38 are held out" in render(report)


def test_names_with_markup_are_printed_as_they_are(tmp_path: Path) -> None:
    for label in ("[red]a", "b[/]"):
        (tmp_path / "train" / label).mkdir(parents=True)
        (tmp_path / "train" / label / "[bold]0.png").write_bytes(b"")
    text = render(check_data(FOLDER, tmp_path))
    assert "[red]a" in text
    assert "b[/]/[bold]0.png" in text


def test_file_names_that_are_no_text_are_printed_by_their_bytes(folder: Path) -> None:
    (folder / "train" / "ant" / os.fsdecode(b"caf\xe9.png")).write_bytes(b"")
    text = render(check_data(FOLDER, folder))
    assert "train/ant/caf\\xe9.png" in text
    assert text.encode()


def test_nothing_to_examine(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="say where they are with --data DIR"):
        check_data(FOLDER)
    with pytest.raises(DataError, match="has no train folder"):
        check_data(FOLDER, tmp_path)


def test_the_digits_are_healthy() -> None:
    report = check_data(DataConfig(source="digits-lt"))
    assert report.problems == ()
    assert report.images == 838
    assert report.kinds == (("array RGB", 838),)
    assert report.rho == pytest.approx(130 / 6)
