from __future__ import annotations

import os
import shutil
import unicodedata
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image

from cbn_deploy.data import (
    DataConfig,
    check_data,
    evaluation_batches,
    load_data,
    load_image_folder,
    load_test_images,
)
from cbn_deploy.data.listing import hold_out, natural_sorted
from cbn_deploy.data.user_images import list_images
from cbn_deploy.errors import DataError
from cbn_deploy.runtime import Preprocessing
from cbn_deploy.runtime.preprocessing import decode_image, preprocess

SMALL = Preprocessing(height=16, width=16)
NOT_UTF8 = os.fsdecode(b"caf\xe9")


def write_image(path: Path, seed: int, size: tuple[int, int] = (24, 20)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three classes with 8, 4, 2 training images and one test image each."""
    seed = 0
    for label, count in (("class10", 2), ("class2", 4), ("Class1", 8)):
        for number in range(count):
            write_image(tmp_path / "train" / label / f"{number}.png", seed := seed + 1)
        write_image(tmp_path / "test" / label / "t.JPG", seed := seed + 1)
    return tmp_path


def test_folder_per_class(folder: Path) -> None:
    (folder / "train" / "class2" / "notes.txt").write_text("no image")
    (folder / "train" / "class2" / ".hidden.png").write_bytes(b"")
    (folder / "train" / ".cache").mkdir()
    write_image(folder / "train" / "class2" / "deeper" / "x.bmp", 99)
    data = load_image_folder(folder, SMALL)
    assert data.class_names == ("Class1", "class2", "class10")
    assert data.class_counts == (8, 5, 2)
    assert data.test.labels.tolist() == [0, 1, 2]
    assert data.train.pixels(0).shape == (16, 16, 3)
    assert data.train.image(0).size == (24, 20)


def test_pixels_are_what_the_server_sees(folder: Path) -> None:
    preprocessing = Preprocessing(height=12, width=12, resize_shorter=14, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    # The set was made for another size: evaluation must follow the model's preprocessing, not the set's.
    for made_for in (preprocessing, SMALL):
        data = load_image_folder(folder, made_for)
        (images, labels), *rest = evaluation_batches(data.test, preprocessing, 2)
        assert len(rest) == 1
        assert labels.tolist() == [0, 1]
        served = preprocess(decode_image(Path(data.test.name(1)).read_bytes()), preprocessing)
        np.testing.assert_array_equal(images[1].numpy(), served)


def test_cache_keeps_pixels_only_if_all_fit(folder: Path) -> None:
    needed = 14 * 16 * 16 * 3
    for bound, cached in ((needed, True), (needed - 1, False), (0, False)):
        data = load_image_folder(folder, SMALL, cache_bytes=bound)
        first = data.train.pixels(3)
        assert (data.train.pixels(3) is first) == cached
        np.testing.assert_array_equal(data.train.pixels(3), first)


def test_without_test_images_some_of_train_are_held_out(tmp_path: Path) -> None:
    for label, count in (("a", 20), ("b", 9)):
        for number in range(count):
            write_image(tmp_path / "train" / label / f"{number}.png", number)
    first, again = load_image_folder(tmp_path, SMALL), load_image_folder(tmp_path, SMALL)
    assert first.class_counts == (15, 7)
    assert np.bincount(first.test.labels).tolist() == [5, 2]
    names = [{data.test.name(i) for i in range(7)} for data in (first, again)]
    assert names[0] == names[1]
    assert names[0].isdisjoint({first.train.name(i) for i in range(len(first.train))})


def test_hold_out_takes_a_quarter_of_every_class_and_leaves_every_class_one() -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(range(7), [500, 201, 50, 13, 3, 2, 1]))
    train, test = hold_out(labels, seed=3)
    assert np.bincount(labels[test], minlength=7).tolist() == [50, 50, 12, 3, 1, 1, 0]
    assert sorted([*train, *test]) == list(range(len(labels)))
    assert hold_out(labels, seed=4)[1].tolist() != test.tolist()
    with pytest.raises(DataError, match="No class has two images"):
        hold_out(np.array([0, 1]), seed=0)


@pytest.mark.parametrize(("train", "test"), [("train", "val"), ("Train", "Valid"), ("TRAIN", "validation")])
def test_folders_as_others_name_them(folder: Path, train: str, test: str) -> None:
    (folder / "test").rename(folder / test)
    (folder / "train").rename(folder / "moved")
    (folder / "moved").rename(folder / train)
    data = load_image_folder(folder, SMALL)
    assert data.class_counts == (8, 4, 2)
    assert Path(data.test.name(0)).parents[1].name == test
    assert len(load_test_images(folder, data.class_names, SMALL)) == 3


def test_the_test_folder_comes_before_a_validation_folder(folder: Path) -> None:
    write_image(folder / "val" / "Class1" / "v.png", 3)
    assert len(load_image_folder(folder, SMALL).test) == 3
    assert len(load_test_images(folder, ("Class1", "class2", "class10"), SMALL)) == 3


def test_a_validation_list_is_the_test(folder: Path) -> None:
    (folder / "train.txt").write_text("train/Class1/0.png 0\ntrain/class2/0.png 1\n")
    (folder / "val.txt").write_text("test/class2/t.JPG 1\n")
    assert load_image_folder(folder, SMALL).test.labels.tolist() == [1]
    assert load_test_images(folder, ("0", "1"), SMALL).labels.tolist() == [1]


def test_classes_without_a_train_folder_around_them(folder: Path) -> None:
    data = load_image_folder(folder / "train", SMALL)
    assert data.class_names == ("Class1", "class2", "class10")
    assert data.class_counts == (6, 3, 1)
    write_image(folder / "outer" / "set" / "class" / "0.png", 1)  # deeper than in classes
    with pytest.raises(DataError, match=r"has no train folder; expected .*CLASS/\*.jpg"):
        load_image_folder(folder / "outer", SMALL)


def test_classes_without_a_train_folder_may_hold_their_images_at_any_depth(folder: Path) -> None:
    flat = folder / "flat"
    for label in ("ant", "bee"):
        for number in range(2):
            write_image(flat / label / "deep" / "deeper" / f"{number}.png", number)
        (flat / label / "deep" / "up").symlink_to("../..")
    data = load_image_folder(flat, SMALL)
    assert (data.class_names, len(data.train) + len(data.test)) == (("ant", "bee"), 4)


@pytest.mark.parametrize("run", ["runs/image-folder", "runs", "runs/photos/bn-0"])
def test_results_among_the_classes_are_no_class(folder: Path, run: str) -> None:
    flat = folder / "train"
    before = load_image_folder(flat, SMALL)
    (flat / run / "plots").mkdir(parents=True)
    (flat / run / "metrics.jsonl").write_bytes(b"")  # as it is during the first epoch
    write_image(flat / run / "plots" / "reliability.png", 1)
    write_image(flat / "runs" / "compared.png", 2)
    data = load_image_folder(flat, SMALL)
    assert (data.class_names, data.class_counts) == (before.class_names, before.class_counts)
    assert len(load_test_images(flat, data.class_names, SMALL)) == 14
    report = check_data(DataConfig(source="image-folder"), flat)
    assert report.notes[-1] == "1 folder holds results of cbn-train and nothing to train on (runs)."


def test_linked_folders_are_read_like_others(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for number in range(3):
        write_image(elsewhere / "deep" / f"{number}.png", 100 + number)
    class2 = folder / "train" / "class2"
    (class2 / "2024").symlink_to(elsewhere)
    data = load_image_folder(folder, SMALL)
    assert data.class_counts == (8, 7, 2)
    names = [data.train.name(index) for index in range(8, 15)]
    linked = [f"2024/deep/{number}.png" for number in range(3)]
    assert names == [str(class2 / name) for name in ("0.png", "1.png", "2.png", *linked, "3.png")]


def test_links_in_a_circle_and_to_what_is_read_anyway_add_nothing(folder: Path) -> None:
    class2 = folder / "train" / "class2"
    write_image(class2 / "more" / "x.png", 99)
    before = list_images(folder)
    (class2 / "all").symlink_to(folder / "train")  # the other classes' images are not of this one
    (class2 / "again").symlink_to(class2)
    (class2 / "more" / "up").symlink_to("..")
    (class2 / "a copy").symlink_to(class2 / "more")
    assert list_images(folder) == before


def test_folders_without_numbers_are_told_apart_by_their_paths(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_image(folder / "train" / "class2" / "more" / "x.png", 99)
    (folder / "train" / "class2" / "more" / "up").symlink_to("..")
    (folder / "train" / "class2" / "all").symlink_to(folder / "train")
    before, stat = list_images(folder), os.stat

    def unnumbered(path: Path, **options: bool) -> os.stat_result:
        mode, _, *rest = stat(path, **options)
        return os.stat_result((mode, 0, *rest))

    monkeypatch.setattr(os, "stat", unnumbered)
    assert (folder / "train").stat().st_ino == 0
    assert list_images(folder) == before
    assert len(before.train) == 15


def test_the_time_to_list_a_deep_tree_grows_with_its_depth(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not with the depth's square, as it does where every folder's real path is asked for, link by link."""
    looked_at: list[object] = []
    lstat = os.lstat
    monkeypatch.setattr(os, "lstat", lambda path, **options: looked_at.append(path) or lstat(path, **options))
    counts = []
    for depth in (100, 200):
        write_image(folder / "train" / "class2" / "/".join("d" * depth) / "x.png", 99)
        looked_at.clear()
        assert len(list_images(folder).train) == 14 + depth // 100
        counts.append(len(looked_at))
    assert counts[1] < 2.5 * counts[0]


def test_the_order_of_the_files_decides_what_is_held_out(folder: Path) -> None:
    class2 = folder / "train" / "class2"
    for name in ("0/x.png", "0-1/x.png", "0.png.d/x.png", "b/a/x.png", "b/a.png", "b.png", "b/.hidden/x.png"):
        write_image(class2 / name, 1)
    relative = [
        file.path.relative_to(class2).as_posix() for file in list_images(folder).train if file.label == "class2"
    ]
    assert relative == [
        *("0/x.png", "0-1/x.png", "0.png", "0.png.d/x.png", "1.png", "2.png", "3.png"),
        *("b/a/x.png", "b/a.png", "b.png"),
    ]


def test_a_link_to_nothing_is_called_one(folder: Path) -> None:
    (folder / "train" / "class2" / "gone.png").symlink_to(folder / "nowhere.png")
    with pytest.raises(DataError, match=r"gone.png is a link to a file that does not exist"):
        load_image_folder(folder, SMALL)


def test_training_images_are_no_test_images(folder: Path) -> None:
    shutil.rmtree(folder / "test")
    with pytest.raises(DataError, match=r"training images only, .* --recipe image-folder"):
        load_test_images(folder, ("Class1", "class2", "class10"), SMALL)


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_class_whose_name_is_not_utf8_is_refused_before_training(folder: Path, split: str) -> None:
    (folder / split / "class2").rename(folder / split / NOT_UTF8)
    sentence = r"The name of the folder .*/caf\\xe9 is not UTF-8; rename the folder\."
    with pytest.raises(DataError, match=sentence) as error:
        load_image_folder(folder, SMALL)
    assert str(error.value).isprintable()
    with pytest.raises(DataError, match=sentence):
        check_data(DataConfig(source="image-folder"), folder)


def test_a_data_set_whose_name_is_not_utf8_is_refused(folder: Path) -> None:
    named = folder / NOT_UTF8
    named.mkdir()
    (folder / "train").rename(named / "train")
    with pytest.raises(DataError, match=r"/caf\\xe9 is not UTF-8; rename the folder\."):
        load_image_folder(named, SMALL)


@pytest.mark.parametrize(("train", "test"), [("NFC", "NFD"), ("NFD", "NFC")])
@pytest.mark.parametrize("kind", ["folders", "lists", "lists and classes.txt"])
def test_a_class_may_be_spelled_in_two_forms_of_unicode(
    folder: Path, train: Literal["NFC", "NFD"], test: Literal["NFC", "NFD"], kind: str
) -> None:
    names = {split: unicodedata.normalize(form, "café") for split, form in (("train", train), ("test", test))}
    assert names["train"] != names["test"]
    for split, name in names.items():
        (folder / split / "class2").rename(folder / split / name)
        if kind != "folders":
            lines = [f"{path.relative_to(folder)} {path.parent.name}" for path in (folder / split).rglob("*.*")]
            (folder / f"{split}.txt").write_text("\n".join(lines))
    if kind == "lists and classes.txt":
        (folder / "classes.txt").write_text(f"{names['train']}\nClass1\nclass10\n")
    data = load_image_folder(folder, SMALL)
    cafe = data.class_names.index(names["train"])
    assert len(data.class_names) == 3
    assert data.class_counts[cafe] == 4
    assert data.test.labels.tolist().count(cafe) == 1
    assert load_test_images(folder, data.class_names, SMALL).labels.tolist().count(cafe) == 1


def test_natural_order() -> None:
    assert natural_sorted(["b10", "b2", "A3", "a20", "10", "9", "x²"]) == ["9", "10", "A3", "a20", "b2", "b10", "x²"]


@pytest.mark.parametrize("style", ["names.csv", "names.txt", "index.csv", "index.txt"])
def test_lists(folder: Path, style: str) -> None:
    names = ["Class1", "class2", "class10"]
    kind, ending = style.split(".")
    separator = "," if ending == "csv" else " "
    for split in ("train", "test"):
        lines = ["path,label"] if ending == "csv" else ["# path label", ""]
        for path in sorted((folder / split).rglob("*.*")):
            label = path.parent.name if kind == "names" else str(names.index(path.parent.name))
            lines.append(f"{path.relative_to(folder).as_posix()}{separator}{label}")
        (folder / f"{split}.{ending}").write_text("\n".join(lines), encoding="utf-8-sig")
    if kind == "index":
        (folder / "classes.txt").write_text("\n".join(names))
    data = load_data(DataConfig(source="image-folder", image_size=16), folder)
    assert data.class_names == tuple(names)
    assert data.class_counts == (8, 4, 2)
    by_name = {data.train.name(i): names[label] for i, label in enumerate(data.train.labels)}
    assert all(Path(name).parent.name == label for name, label in by_name.items())
    assert data.test.labels.tolist() == [names.index(Path(data.test.name(i)).parent.name) for i in range(3)]


def test_list_with_spaces_and_no_class_names(folder: Path) -> None:
    write_image(folder / "train" / "class2" / "a b.png", 5)
    (folder / "train.txt").write_text(
        "train/class2/a b.png 1\ntrain/Class1/0.png\t0\n./train/class2/../class2/0.png 1\n"
    )
    (folder / "test.txt").write_text("test/class2/t.JPG 1\n")
    data = load_image_folder(folder, SMALL)
    assert data.class_names == ("0", "1")
    assert data.train.labels.tolist() == [1, 0, 1]
    assert len(data.test) == 1


@pytest.mark.parametrize("heading", ["path,label", "image_path,label", "Filename,Class", "x" * 5000 + ",y"])
def test_the_heading_of_a_csv_is_no_image(folder: Path, heading: str) -> None:
    (folder / "train.csv").write_text(f"{heading}\ntrain/Class1/0.png,a\ntrain/class2/0.png,b\n")
    assert [file.label for file in list_images(folder).train] == ["a", "b"]


@pytest.mark.parametrize("name", ["train.txt", "train.csv"])
def test_paths_as_windows_writes_them(folder: Path, name: str) -> None:
    write_image(folder / "train" / "Class1" / "a\\b.png", 1)  # a backslash in a name, where systems allow it
    write_image(folder / "train" / "Class1" / "a" / "b.png", 2)
    separator = "," if name.endswith("csv") else " "
    paths = ["train\\Class1\\0.png", ".\\train\\class2\\0.png", "train/Class1/a\\b.png", "train\\nowhere.png"]
    (folder / name).write_text("\n".join(f"{path}{separator}{path[-5]}" for path in paths))
    read = [file.path.relative_to(folder).as_posix() for file in list_images(folder).train]
    assert read == ["train/Class1/0.png", "train/class2/0.png", "train/Class1/a\\b.png", "train\\nowhere.png"]
    absolute = str(folder / "train" / "Class1" / "0.png").replace("/", "\\")
    (folder / name).write_text(f"{absolute}{separator}a\n")
    assert [file.path.parent for file in list_images(folder).train] == [folder]
    (folder / name).write_text(f"..\\secret.png{separator}a\n")
    with pytest.raises(DataError, match="lies outside"):
        list_images(folder)


@pytest.mark.parametrize(
    ("heading", "row"),
    [
        ("label,path", "{label},{path}"),
        ("class,filename", "{label},{path}"),
        ("Class Name,Image_Path", "{label},{path}"),
        (",target,image,width", "0,{label},{path},"),  # as a table with row numbers is written
        ("split,content", "{path},{label}"),  # unusual words: a path and a label
        ("path,label,class", None),
        ("label,image,file", None),
    ],
)
def test_the_heading_of_a_csv_may_name_the_columns(folder: Path, heading: str, row: str | None) -> None:
    images = {"a": "train/Class1/0.png", "b": "train/class2/0.png"}
    lines = [(row or "{path},{label},x").format(label=label, path=path) for label, path in images.items()]
    (folder / "train.csv").write_text("\n".join([heading, *lines]))
    if row is None:
        with pytest.raises(DataError, match=r"line 2: expected 'path,label', got 'train/Class1/0.png,a,x'"):
            list_images(folder)
    else:
        read = {file.label: file.path.relative_to(folder).as_posix() for file in list_images(folder).train}
        assert read == images


def test_a_row_must_fit_the_heading(folder: Path) -> None:
    for row in ("a", "a,", ",x.png", "a,x.png,"):
        (folder / "train.csv").write_text(f"label,path\n{row}\n")
        with pytest.raises(DataError, match="line 2: expected 'label,path', got"):
            list_images(folder)


def test_the_first_line_of_a_csv_may_be_an_image(folder: Path) -> None:
    shutil.copy(folder / "train" / "Class1" / "0.png", folder / "image")
    for first in ("image", "train/Class1/0.png"):
        (folder / "train.csv").write_text(f"{first},a\ntrain/class2/0.png,b\n")
        assert [file.label for file in list_images(folder).train] == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("train.txt", "", "is empty"),
        ("train.txt", "only-a-path", "line 1: expected 'path label', got 'only-a-path'; put a space or a tab between"),
        ("train.txt", "a.png,cat", "got 'a.png,cat'; put a space or a tab between the two, or call a list with commas"),
        ("train.csv", "a.png,b,c", "line 1: expected 'path,label', got 'a.png,b,c'; leave these columns only, name"),
        ("train.csv", "path,label\na,b.png,c", "got 'a,b.png,c'; leave these columns only, name all in a heading"),
        ("train.csv", "path;label\na.png;b", "got 'a.png;b'; columns are separated by commas, not semicolons."),
        ("train.csv", "a.png\tb\nc.png\td", "columns are separated by commas, not tabs."),
        ("train.csv", "path,label\na.png,", "line 2: expected 'path,label'"),
        ("train.txt", "../secret.png 0", "line 1: '../secret.png' lies outside"),
        ("train.txt", "a/../../secret.png 0", "lies outside"),
        ("train.txt", "/etc/secret.png 0", "lies outside"),
        ("train.txt", "a\0b.png 0", "lies outside"),
        ("train.txt", "a.png 0\nb.png 12345678901234", "is too large"),
        ("train.txt", "a.png 0\nb.png 2", "1 class has no training images; add some or remove the class (1)."),
        ("train.txt", "a.png 0\nb.png 0", "has 1 class; a classifier needs at least 2"),
        ("train.txt", "a" * 5000 + ".png cat\nb.png dog\nc.png cat\nd.png dog", "does not exist"),
        ("train.txt", "a.png cat\nb.png dog\nc.png cat\nd.png dog", "is listed but does not exist"),
    ],
)
def test_bad_lists(name: str, text: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError) as error:
        load_image_folder(tmp_path, SMALL)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_list_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(DataError, match="Cannot read the list"):
        load_image_folder(tmp_path, SMALL)


def test_label_unknown_to_classes_txt(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    (tmp_path / "train.txt").write_text("a.png cat\nb.png bird\n")
    with pytest.raises(DataError, match="label 'bird' is none of the 2 known classes"):
        load_image_folder(tmp_path, SMALL)
    (tmp_path / "classes.txt").write_text("cat\ncat\n")
    with pytest.raises(DataError, match="names a class twice"):
        load_image_folder(tmp_path, SMALL)


def test_numbers_count_the_classes_from_0(folder: Path) -> None:
    (folder / "train.txt").write_text("train/Class1/0.png 1\ntrain/class2/0.png 2\n")
    for refuses in (list_images, lambda data: check_data(DataConfig(source="image-folder"), data)):
        with pytest.raises(DataError, match="labels go from 1 to 2, but numbers count the classes from 0; number"):
            refuses(folder)
    (folder / "classes.txt").write_text("Class1\nclass2\n")
    with pytest.raises(DataError, match="label '2' is none of the 2 known classes, which numbers count from 0"):
        list_images(folder)
    (folder / "classes.txt").write_text("1\n2\n")
    assert list_images(folder).class_names == ("1", "2")


def test_a_test_list_need_not_have_the_first_class(folder: Path) -> None:
    (folder / "test.txt").write_text("test/class2/t.JPG 1\n")
    assert load_test_images(folder, ("Class1", "class2"), SMALL).labels.tolist() == [1]


def test_bad_folders(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(DataError, match="is not a folder"):
        load_image_folder(tmp_path / "nowhere", SMALL)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"has no train folder; expected .*train/CLASS/"):
        load_image_folder(tmp_path / "empty", SMALL)
    (tmp_path / "empty" / "train").mkdir()
    with pytest.raises(DataError, match="has no class folders"):
        load_image_folder(tmp_path / "empty", SMALL)
    (folder / "train" / "empty class").mkdir()
    with pytest.raises(DataError, match="no training images"):
        load_image_folder(folder, SMALL)


def test_damaged_image_is_named(folder: Path) -> None:
    path = folder / "train" / "class2" / "0.png"
    path.write_bytes(path.read_bytes()[:200])
    data = load_image_folder(folder, SMALL)
    index = next(i for i in range(len(data.train)) if data.train.name(i) == str(path))
    with pytest.raises(DataError, match=r"class2/0\.png: The PNG image is truncated or damaged\. Remove it"):
        data.train.pixels(index)


def test_test_images_for_a_trained_model(folder: Path) -> None:
    names = ["class10", "other", "Class1", "class2"]
    assert load_test_images(folder, names, SMALL).labels.tolist() == [2, 3, 0]
    assert load_test_images(folder / "test", names, SMALL).labels.tolist() == [2, 3, 0]
    (folder / "test.txt").write_text("test/Class1/t.JPG 2\ntest/class2/t.JPG 3\n")
    assert load_test_images(folder, names, SMALL).labels.tolist() == [2, 3]
    (folder / "test.txt").unlink()
    with pytest.raises(DataError, match="the class 'class2', which the model does not know"):
        load_test_images(folder, ["Class1", "class10"], SMALL)
    with pytest.raises(DataError, match="is not a folder"):
        load_test_images(folder / "nowhere", names, SMALL)


def test_workers_change_nothing_in_an_evaluation(folder: Path) -> None:
    for cache_bytes in (0, 10**6):
        images = load_image_folder(folder, SMALL, cache_bytes=cache_bytes).train
        alone = list(evaluation_batches(images, SMALL, 4))
        helped = list(evaluation_batches(images, SMALL, 4, workers=2))
        assert [labels.tolist() for _, labels in helped] == [labels.tolist() for _, labels in alone]
        assert all(np.array_equal(ours, theirs) for (ours, _), (theirs, _) in zip(helped, alone, strict=True))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_test_image_is_one_sentence_whoever_reads_it(folder: Path, workers: int) -> None:
    (folder / "test" / "class2" / "t.JPG").write_bytes(b"no image")
    images = load_image_folder(folder, SMALL).test
    with pytest.raises(DataError, match=r"t\.JPG: The bytes are not a readable .* Remove it; --check lists"):
        list(evaluation_batches(images, SMALL, 2, workers=workers))
