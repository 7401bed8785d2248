from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbn_deploy.data import PUBLISHED_SETS, DataConfig, LongTailedData, load_data, load_test_images
from cbn_deploy.data.file_paths import FilePaths
from cbn_deploy.data.labelled_list import leaves_root, read_labelled_list
from cbn_deploy.data.published_sets import PLACES_LT
from cbn_deploy.errors import DataError
from cbn_deploy.runtime import Preprocessing
from tests.cbn_deploy.data import published_trees as trees

SMALL = Preprocessing(height=16, width=16)


def load(source: str, data_dir: Path, lists: Path | None = None) -> LongTailedData:
    config = DataConfig(source=source, image_size=16, lists=None if lists is None else str(lists))  # type: ignore[arg-type]
    return load_data(config, data_dir)


def check_content(data: LongTailedData, root: Path, images: trees.Rows, test: str = "test") -> None:
    """Every image is the file that was written for its row, and its pixels can be had."""
    for image_set, split in ((data.train, "train"), (data.test, test)):
        assert [image_set.name(i) for i in range(len(image_set))] == [str(root / path) for path, _ in images[split]]
        assert image_set.labels.tolist() == [label for _, label in images[split]]
        assert image_set.pixels(len(image_set) - 1).shape == (16, 16, 3)


def test_imagenet_lt(tmp_path: Path) -> None:
    rows = trees.imagenet_rows()
    trees.write_images(tmp_path, rows)
    trees.write_lists(tmp_path, "imagenet-lt", rows)
    data = load("imagenet-lt", tmp_path)
    check_content(data, tmp_path, rows)
    assert data.name == "ImageNet-LT"
    assert data.class_names == ("n01440764", "n01443537", "n01484850")
    assert data.class_counts == (6, 3, 2)
    assert data.preprocessing.mean == (0.485, 0.456, 0.406)


def test_imagenet_validation_images_as_the_archive_unpacks_them(tmp_path: Path) -> None:
    rows = trees.imagenet_rows()
    flat = {**rows, "test": [(f"val/{Path(path).name}", label) for path, label in rows["test"]]}
    trees.write_images(tmp_path, flat)
    trees.write_lists(tmp_path, "imagenet-lt", rows)
    check_content(load("imagenet-lt", tmp_path), tmp_path, flat)


@pytest.mark.parametrize("listed", [trees.places_rows, trees.places_v2_rows])
@pytest.mark.parametrize("on_disk", [trees.places_rows, trees.places_v2_rows])
@pytest.mark.parametrize("prefix", ["", "places365_standard/"])
def test_places_lt_in_both_layouts(listed, on_disk, prefix: str, tmp_path: Path) -> None:
    """Either version of the lists finds the images in either layout, under the same class names."""

    def prefixed(rows: trees.Rows) -> trees.Rows:
        return {split: [(prefix + path, label) for path, label in entries] for split, entries in rows.items()}

    images = prefixed(on_disk())
    trees.write_images(tmp_path, images)
    trees.write_lists(tmp_path, "places-lt", prefixed(listed()))
    data = load("places-lt", tmp_path)
    check_content(data, tmp_path, images)
    assert data.class_names == trees.PLACES
    assert data.class_counts == (3, 6, 2)


def test_inaturalist_tests_on_its_validation_list(tmp_path: Path) -> None:
    rows = trees.inaturalist_rows()
    trees.write_images(tmp_path, rows)
    trees.write_lists(tmp_path / "iNaturalist18", "inaturalist2018", rows)
    data = load("inaturalist2018", tmp_path)
    check_content(data, tmp_path, rows, test="val")
    assert data.class_names == ("0", "1", "2")
    assert data.preprocessing.mean == (0.466, 0.471, 0.380)


def test_lists_elsewhere_and_names_of_the_classes(tmp_path: Path) -> None:
    rows = trees.places_v2_rows()
    trees.write_images(tmp_path / "images", trees.places_rows())
    trees.write_lists(tmp_path / "lists" / "Places_LT_v2", "places-lt", rows)
    (tmp_path / "lists" / "Places_LT_v2" / "classes.txt").write_text("Airfield\nIndoor car park\nYard\n")
    data = load("places-lt", tmp_path / "images", tmp_path / "lists")
    check_content(data, tmp_path / "images", trees.places_rows())
    assert data.class_names == ("Airfield", "Indoor car park", "Yard")
    with pytest.raises(DataError, match=r"does not hold Places-LT's lists; expected .*--set data.lists=DIR"):
        load("places-lt", tmp_path / "images")


def test_windows_line_ends_a_byte_order_mark_and_empty_lines_do_no_harm(tmp_path: Path) -> None:
    source = tmp_path / "list.txt"
    source.write_bytes(b"\xef\xbb\xbf\r\ntrain/a/0.jpg 0\r\n\r\n./train/b/../b/1.jpg\t1\r\n")
    rows = read_labelled_list(source)
    assert rows.names == ("train/a/0.jpg", "./train/b/../b/1.jpg")
    assert rows.labels.tolist() == [0, 1]
    assert rows.lines.tolist() == [2, 4]


def test_only_line_ends_end_a_line(tmp_path: Path) -> None:
    source = tmp_path / "list.txt"
    source.write_text("a.jpg 0\u2028\n\x85\nb.jpg\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"list.txt, line 3: expected 'path label'"):
        read_labelled_list(source)


BAD_LINES = [
    ("only-a-path.jpg", "expected 'path label', with no space in the path, got 'only-a-path.jpg'"),
    ("train/a/0.jpg 0 1", "expected 'path label', with no space in the path, got 'train/a/0.jpg 0 1'"),
    ("train/a/0.jpg,0", "expected 'path label'"),
    ("train/a/0.jpg cat", "the label 'cat' is not a whole number in 0 ... 99999"),
    ("train/a/0.jpg -1", "the label '-1' is not a whole number"),
    ("train/a/0.jpg 1.0", "the label '1.0' is not a whole number"),
    ("train/a/0.jpg ²", "is not a whole number"),
    ("train/a/0.jpg 100000", "is not a whole number"),
    ("train/a/0.jpg " + "9" * 5000, "is not a whole number"),
    ("/photos/train/a/0.jpg 0", "'/photos/train/a/0.jpg' is absolute or leaves the data folder"),
    ("../a/0.jpg 0", "is absolute or leaves"),
    ("train/../../a/0.jpg 0", "is absolute or leaves"),
    ("train/n01440764/. 0", "one of 1 of 12 files"),
    ("train/a\0/0.jpg 0", "is absolute or leaves"),
    (f"train/{'a' * 5000}.jpg 0", "label 0 is train here but n01440764 before"),
    (f"train/n01440764/{'a' * 5000}.jpg 0", "is missing or empty, one of 1 of 12 files"),
    ("0.jpg 0", "0.jpg lies in no class folder; correct the list, or name the classes in a classes.txt"),
    ("train/n01484850/0.jpg 0", "label 0 is n01484850 here but n01440764 before"),
    ("train/n01440764/0.jpg 3", "n01440764 has label 3 here but 0 elsewhere"),
    ("train/n01440764/missing.JPEG 0", "missing.JPEG is missing or empty, one of 1 of 12 files; --data must be"),
]


@pytest.mark.parametrize(("line", "sentence"), BAD_LINES)
def test_a_bad_line_is_named(line: str, sentence: str, tmp_path: Path) -> None:
    rows = trees.imagenet_rows()
    trees.write_images(tmp_path, rows)
    trees.write_lists(tmp_path, "imagenet-lt", rows)
    source = tmp_path / "ImageNet_LT_train.txt"
    source.write_text(source.read_text() + line + "\n")
    with pytest.raises(DataError) as error:
        load("imagenet-lt", tmp_path)
    message = str(error.value)
    assert message.startswith(f"{source}, line 12: ")
    assert sentence in message
    assert "\n" not in message


def test_lists_that_do_not_belong_together(tmp_path: Path) -> None:
    rows = trees.imagenet_rows()
    trees.write_images(tmp_path, rows)
    trees.write_lists(tmp_path, "imagenet-lt", {**rows, "test": [("val/n02/x.JPEG", 3)]})
    with pytest.raises(DataError, match=r"ImageNet_LT_test.txt, line 1: label 3 is none of the 3 known classes"):
        load("imagenet-lt", tmp_path)
    without = [(path, label) for path, label in rows["train"] if label != 1]
    trees.write_lists(tmp_path, "imagenet-lt", {**rows, "train": without})
    with pytest.raises(DataError, match="has no image of label 1, one of 1 such labels"):
        load("imagenet-lt", tmp_path)
    trees.write_lists(tmp_path, "imagenet-lt", {**rows, "train": [row for row in rows["train"] if row[1] == 0]})
    with pytest.raises(DataError, match="label 2 is none of the 1 known classes"):
        load("imagenet-lt", tmp_path)
    (tmp_path / "ImageNet_LT_train.txt").write_text("")
    with pytest.raises(DataError, match=r"ImageNet_LT_train.txt is empty"):
        load("imagenet-lt", tmp_path)
    (tmp_path / "ImageNet_LT_train.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="Cannot read the list"):
        load("imagenet-lt", tmp_path)
    with pytest.raises(DataError, match="is not a folder; give the folder of ImageNet-LT's images"):
        load("imagenet-lt", tmp_path / "nowhere")


@pytest.mark.parametrize("split", ["val", "test"])
@pytest.mark.parametrize(
    ("source", "make_rows"), [("imagenet-lt", trees.imagenet_rows), ("places-lt", trees.places_rows)]
)
def test_lists_that_number_the_classes_differently(source: str, make_rows, split: str, tmp_path: Path) -> None:
    rows = make_rows()
    trees.write_images(tmp_path, rows)
    swapped = [(path, {0: 1, 1: 0}.get(label, label)) for path, label in rows[split]]
    trees.write_lists(tmp_path, source, {**rows, split: swapped})
    with pytest.raises(DataError, match=rf"_{split}.txt, line 1: .* has label 1, but \S+ is class 0 of the training; "):
        load(source, tmp_path)


def test_folders_of_several_classes_say_nothing_of_a_label(tmp_path: Path) -> None:
    """With a classes.txt the images may lie in one folder."""
    rows = {
        split: [(f"{split}/{label}-{Path(path).name}", label) for path, label in rows]
        for split, rows in trees.imagenet_rows().items()
    }
    trees.write_images(tmp_path, rows)
    trees.write_lists(tmp_path, "imagenet-lt", {**rows, "val": [(f"train/{n}.JPEG", n) for n in (2, 0)]})
    (tmp_path / "classes.txt").write_text("tench\ngoldfish\nshark\n")
    assert load("imagenet-lt", tmp_path).class_names == ("tench", "goldfish", "shark")


def test_an_empty_file_and_a_folder_are_no_images(tmp_path: Path) -> None:
    rows = trees.imagenet_rows()
    trees.write_images(tmp_path, rows)
    trees.write_lists(tmp_path, "imagenet-lt", rows)
    first, third = (tmp_path / rows["test"][n][0] for n in (0, 2))
    third.unlink()
    third.mkdir()
    first.write_bytes(b"")
    with pytest.raises(DataError, match=r"ImageNet_LT_test.txt, line 1: .*is missing or empty, one of 2 of 6 files"):
        load("imagenet-lt", tmp_path)


def test_evaluation_needs_the_test_list_alone(tmp_path: Path) -> None:
    trees.write_images(tmp_path, trees.places_v2_rows())
    trees.write_lists(tmp_path, "places-lt", trees.places_rows())
    (tmp_path / "Places_LT_train.txt").unlink()
    images = load_test_images(tmp_path, trees.PLACES, SMALL)
    assert images.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert images.name(2) == str(tmp_path / "val_256/Places365_val_00010000.jpg")
    with pytest.raises(DataError, match=r"line 1: .* has label 0, but airfield is class 2 of the training; take the"):
        load_test_images(tmp_path, tuple(reversed(trees.PLACES)), SMALL)
    with pytest.raises(DataError, match=r"line 5: label 2 is none of the 2 known classes"):
        load_test_images(tmp_path, trees.PLACES[:2], SMALL)


def test_the_sets_are_what_the_literature_counts() -> None:
    lines = {source: tuple(published.lines.values()) for source, published in PUBLISHED_SETS.items()}
    assert lines == {
        "imagenet-lt": (115_846, 20_000, 50_000),
        "places-lt": (62_500, 7_300, 36_500),
        "inaturalist2018": (437_513, 24_426),
    }
    assert {source: published.classes for source, published in PUBLISHED_SETS.items()} == {
        "imagenet-lt": 1000,
        "places-lt": 365,
        "inaturalist2018": 8142,
    }


PLACE_NAMES = st.from_regex(r"[a-z]{1,6}(_[a-z]{1,5})?(-[a-z]{1,6})?", fullmatch=True)


@given(place=PLACE_NAMES, number=st.integers(0, 99_999_999), validation=st.booleans())
def test_places_layouts_are_each_others_inverse(place: str, number: int, validation: bool) -> None:
    _, by_class, by_letter = PLACES_LT.layouts
    listed = f"val/{place}/Places365_val_{number:08}.jpg" if validation else f"train/{place}/{number:08}.jpg"
    moved = by_letter.place(listed, place)
    assert moved.startswith("val_256/" if validation else f"data_256/{place[0]}/")
    assert by_letter.place(moved, place) == moved
    assert by_class.place(listed, place) == listed
    assert by_class.place(moved, place) == listed
    assert PLACES_LT.class_name(listed) == place
    assert PLACES_LT.class_name(moved) == ("" if validation else place)


@given(st.lists(st.sampled_from(["a", "b.jpg", "..", ".", ""]), min_size=1, max_size=6))
def test_a_path_leaves_the_root_exactly_if_following_it_does(parts: list[str]) -> None:
    name = "/".join(parts)
    depths = np.cumsum([{"..": -1, ".": 0, "": 0}.get(part, 1) for part in parts])
    assert leaves_root(name) == (name.startswith("/") or depths.min() < 0 or (".." in parts and depths[-1] == 0))


@given(st.lists(st.text(st.characters(exclude_characters="\0"), min_size=1), max_size=20))
def test_paths_in_one_buffer(names: list[str]) -> None:
    paths = FilePaths(Path("/data"), names)
    assert len(paths) == len(names)
    for copy in (paths, pickle.loads(pickle.dumps(paths))):  # noqa: S301 our own bytes
        assert [copy.name(i) for i in range(len(names))] == names
        assert list(copy) == [Path("/data") / name for name in names]
        assert copy[1:3] == list(copy)[1:3]
    with pytest.raises(IndexError):
        paths[len(names)]


def test_a_long_list_is_small_in_a_worker(tmp_path: Path) -> None:
    names = [f"train_val2018/Plantae/{n % 8142}/{n:032x}.jpg" for n in range(20_000)]
    assert len(pickle.dumps(FilePaths(tmp_path, names))) < 90 * len(names)


def test_sets_survive_a_moved_folder(tmp_path: Path) -> None:
    """Lists hold relative paths only: what was trained here is found there."""
    rows = trees.inaturalist_rows()
    trees.write_images(tmp_path / "a", rows)
    trees.write_lists(tmp_path / "a", "inaturalist2018", rows)
    before = load("inaturalist2018", tmp_path / "a").train.pixels(3)
    shutil.move(tmp_path / "a", tmp_path / "b")
    np.testing.assert_array_equal(load("inaturalist2018", tmp_path / "b").train.pixels(3), before)
