from __future__ import annotations

import dataclasses
import io
import shutil
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from cbn_deploy.data import DataConfig, ListReport, check_data
from cbn_deploy.data.list_doctor import check_published
from cbn_deploy.data.published_sets import PLACES_LT
from cbn_deploy.errors import DataError
from tests.cbn_deploy.data import published_trees as trees

PLACES = DataConfig(source="places-lt")
# The published counts, had the small tree of these tests been published.
SMALL = dataclasses.replace(PLACES_LT, lines={"train": 11, "val": 3, "test": 6}, classes=3, class_sizes=(6, 2))


def write_places(root: Path) -> trees.Rows:
    rows = trees.places_rows()
    trees.write_images(root, rows)
    trees.write_lists(root, "places-lt", rows)
    return rows


def check(root: Path, config: DataConfig = PLACES) -> ListReport:
    report = check_data(config, root)
    assert isinstance(report, ListReport)
    return report


def render(report: ListReport) -> str:
    console = Console(file=io.StringIO(), width=200)
    report.render(console)
    return console.file.getvalue()  # type: ignore[attr-defined]


# What a small tree cannot but differ in from the published set.
def problems(report: ListReport) -> list[str]:
    small = ("the published list", "; get the list again.")
    return [sentence for sentence in report.problems if not any(words in sentence for words in small)]


def test_counts_are_compared_with_the_published_ones(tmp_path: Path) -> None:
    write_places(tmp_path)
    progress: list[tuple[int, int]] = []
    report = check_data(PLACES, tmp_path, lambda done, total: progress.append((done, total)))
    assert isinstance(report, ListReport)
    assert [(s.split, s.lines, s.published_lines, s.sampled) for s in report.splits] == [
        ("train", 11, 62_500, 11),
        ("val", 3, 7_300, 3),
        ("test", 6, 36_500, 6),
    ]
    assert report.train_counts == (3, 6, 2)
    assert report.test_counts == (2, 2, 2)
    assert report.rho == 3
    assert report.shots == {"many": 0, "medium": 0, "few": 3}
    assert report.sizes == (((50, 38), 20),)
    assert report.kinds == (("JPEG RGB", 20),)
    assert report.problems == (
        "Places_LT_train.txt has 11 images, the published list 62,500; get it again, or use image-folder for a set of "
        "your own.",
        "Places_LT_val.txt has 3 images, the published list 7,300; get it again, or use image-folder for a set of your "
        "own.",
        "Places_LT_test.txt has 6 images, the published list 36,500; get it again, or use image-folder for a set of "
        "your own.",
        "The training list has 3 classes, Places-LT 365; get the list again.",
    )
    assert progress == [(done, 20) for done in range(1, 21)]
    text = render(report)
    assert "files lie as listed: Places_LT_train.txt, Places_LT_val.txt, Places_LT_test.txt" in text
    assert "rho (largest / smallest class): 3.0" in text
    assert all(f"Problem: {sentence}" in text.replace("\n", " ") for sentence in report.problems[3:])


def test_a_set_with_the_published_counts_has_no_problems(tmp_path: Path) -> None:
    write_places(tmp_path)
    report = check_published(SMALL, tmp_path)
    assert report.problems == ()
    assert "No problems found" in render(report)
    (tmp_path / "Places_LT_val.txt").unlink()  # nothing here reads it
    report = check_published(SMALL, tmp_path)
    assert [split.split for split in report.splits] == ["train", "test"]
    assert report.problems == ()


def test_another_draw_with_the_published_totals_is_told_from_the_published_one(tmp_path: Path) -> None:
    write_places(tmp_path)
    report = check_published(dataclasses.replace(SMALL, class_sizes=(4980, 5)), tmp_path)
    assert report.problems == (
        "The training list has 6 to 2 images a class, Places-LT 4,980 to 5; get the list again.",
    )


def test_the_layout_that_was_found_is_named(tmp_path: Path) -> None:
    trees.write_images(tmp_path, trees.places_v2_rows())
    trees.write_lists(tmp_path, "places-lt", trees.places_rows())
    report = check(tmp_path)
    assert {split.layout for split in report.splits} == {"in data_256/LETTER/CLASS/FILE and val_256/FILE"}
    assert problems(report) == []
    assert "files lie in data_256/LETTER/CLASS/FILE and val_256/FILE: Places_LT_train.txt, Places_LT_val.txt" in render(
        report
    )


def test_missing_empty_and_damaged_files(tmp_path: Path) -> None:
    rows = write_places(tmp_path)
    train = [tmp_path / path for path, _ in rows["train"]]
    for path in train[:4]:
        path.unlink()
    train[5].write_bytes(b"")
    train[6].write_bytes(train[6].read_bytes()[:-100])
    report = check(tmp_path)
    split = report.splits[0]
    assert (split.missing.count, split.empty.count, split.sampled) == (4, 1, 6)
    assert [(file.name, "truncated" in file.reason) for file in split.unreadable] == [
        ("train/parking_garage-indoor/00000003.jpg, Places_LT_train.txt line 7", True)
    ]
    assert problems(report) == [
        "4 of 11 files of Places_LT_train.txt are missing (train/airfield/00000000.jpg, line 1, "
        "train/airfield/00000001.jpg, line 2, train/airfield/00000002.jpg, line 3, ...); unpack the images again.",
        "1 of 11 files of Places_LT_train.txt is empty (0 bytes) (train/parking_garage-indoor/00000002.jpg, line 6); "
        "unpack the images again.",
        "1 of 6 sampled files of Places_LT_train.txt is unreadable; unpack the images again "
        "(train/parking_garage-indoor/00000003.jpg, Places_LT_train.txt line 7).",
    ]


def test_the_wrong_folder_is_told_from_an_incomplete_one(tmp_path: Path) -> None:
    write_places(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    config = DataConfig(source="places-lt", lists=str(tmp_path))
    report = check(tmp_path / "elsewhere", config)
    assert [split.missing.count for split in report.splits] == [11, 3, 6]
    assert report.kinds == ()
    first = problems(report)[0]
    assert first.startswith("11 of 11 files of Places_LT_train.txt are missing (train/airfield/00000000.jpg, line 1, ")
    assert first.endswith(f"--data must be the folder that the list's paths begin in, not {tmp_path / 'elsewhere'}.")


def test_gaps_in_the_labels(tmp_path: Path) -> None:
    rows = write_places(tmp_path)
    rows["train"] = [(path, label) for path, label in rows["train"] if label != 1]
    rows["test"] = [(path, label) for path, label in rows["test"] if label != 0]
    trees.write_lists(tmp_path, "places-lt", rows)
    report = check(tmp_path)
    assert report.rho is None
    assert problems(report) == [
        "1 class has no training images; get the training list again (label 1).",
        "1 class has no test images, so no recall can be given (label 0).",
    ]
    assert "rho (largest / smallest class): undefined" in render(report)


def test_copies_and_leaks(tmp_path: Path) -> None:
    rows = write_places(tmp_path)
    train, test = rows["train"], rows["test"]
    lists = {
        # The same line twice; the same file under another label; a test image in train, by its path.
        "train": [*train, train[0], (f"./{train[4][0]}", 2), (test[5][0], 2)],
        "val": rows["val"],
        "test": test,
    }
    trees.write_lists(tmp_path, "places-lt", lists)
    (tmp_path / "Places_LT_train.txt").write_text(
        "".join(f"{path} {label}\n" for path, label in lists["train"]).replace("./train", "train/yard/../../train")
    )
    (tmp_path / "classes.txt").write_text("airfield\nparking garage\nyard\n")
    # Two files with the same bytes, and a link from one split to the other.
    shutil.copy(tmp_path / train[1][0], tmp_path / train[2][0])
    (tmp_path / rows["val"][2][0]).unlink()
    (tmp_path / rows["val"][2][0]).symlink_to(tmp_path / test[4][0])
    report = check(tmp_path)
    assert sorted(tuple(n.split(", ")[1] for n in group.names) for group in report.duplicates) == [
        ("Places_LT_train.txt line 1", "Places_LT_train.txt line 12"),
        ("Places_LT_train.txt line 2", "Places_LT_train.txt line 3"),
        ("Places_LT_train.txt line 5", "Places_LT_train.txt line 13"),
    ]
    assert sorted(tuple(n.split(", ")[1] for n in group.names) for group in report.leaks) == [
        ("Places_LT_train.txt line 14", "Places_LT_test.txt line 6"),
        ("Places_LT_val.txt line 3", "Places_LT_test.txt line 5"),
    ]
    assert [group.labels for group in report.conflicts] == [("parking garage", "yard")]
    sentences = " ".join(problems(report))
    assert "2 images are in two lists, which flatters the result; keep them in the test list only" in sentences
    assert "1 image is listed under several labels" in sentences
    assert "3 images are in one list more than once; keep one line only" in sentences


def test_files_of_one_size_are_copies_only_if_their_bytes_are(tmp_path: Path) -> None:
    rows = trees.inaturalist_rows()
    trees.write_lists(tmp_path, "inaturalist2018", rows)
    for number, (path, _) in enumerate([*rows["train"], *rows["val"]]):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (min(number, 15), 0, 0)).save(tmp_path / path, "BMP")
    report = check(tmp_path, DataConfig(source="inaturalist2018"))
    assert report.kinds == (("BMP RGB", 17),)
    assert report.leaks == ()
    assert [[name.split(" ")[-1] for name in group.names] for group in report.duplicates] == [["5", "6"]]


def test_nothing_to_examine(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="say where they are with --data DIR"):
        check_data(PLACES)
    with pytest.raises(DataError, match="does not hold Places-LT's lists"):
        check_data(PLACES, tmp_path)
    write_places(tmp_path)
    source = tmp_path / "Places_LT_val.txt"
    source.write_text("train/yard/1.jpg two\n")
    with pytest.raises(DataError, match=r"Places_LT_val.txt, line 1: the label 'two' is not a whole number"):
        check_data(PLACES, tmp_path)
