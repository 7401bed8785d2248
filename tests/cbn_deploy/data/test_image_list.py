"""Lists of images: how lines and rows are read, what labels are; see test_user_images.py for what is trained on."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from cbn_deploy.data import DataConfig, check_data, image_list
from cbn_deploy.data.listing import natural_sorted
from cbn_deploy.data.user_images import list_images, load_image_folder
from cbn_deploy.errors import DataError
from cbn_deploy.runtime import Preprocessing

# "café" with its accent as one character and as two: people call them the same, Python does not.
COMPOSED, APART = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


@pytest.mark.parametrize("blank", ["\n", " \n", ",\n", "\r\n\r\n"])
def test_blank_lines_may_come_before_the_heading_of_a_csv(tmp_path: Path, blank: str) -> None:
    (tmp_path / "train.csv").write_text(f"{blank}label,path\na,train/Class1/0.png\nb,train/class2/0.png\n", newline="")
    assert [file.label for file in list_images(tmp_path).train] == ["a", "b"]


# Python's str.splitlines() ends a line at each of them.
@pytest.mark.parametrize("character", ["\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029"])
def test_only_line_ends_end_a_line(tmp_path: Path, character: str) -> None:
    name = f"caf{character}e.png"
    for file, separator in (("train.txt", " "), ("train.csv", ",")):
        (tmp_path / file).write_text(f"{name}{separator}cat\r\nb.png{separator}dog\n", encoding="utf-8", newline="")
        assert [(f.path.name, f.label) for f in list_images(tmp_path).train] == [(name, "cat"), ("b.png", "dog")]
    (tmp_path / "classes.txt").write_text(f"dog\ncat{character}s\n", encoding="utf-8")
    (tmp_path / "train.csv").write_text(f"a.png,0\n{name},1\n", encoding="utf-8")
    assert list_images(tmp_path).class_names == ("dog", f"cat{character}s")


@pytest.mark.parametrize("character", ["\n", "\r", "\r\n", "\u2028"])
def test_a_quoted_path_is_read_as_it_is(tmp_path: Path, character: str) -> None:
    text = f'path,label\n"new{character}line.png",cat\nb.png,dog\n'
    (tmp_path / "train.csv").write_text(text, encoding="utf-8", newline="")
    assert [file.path.name for file in list_images(tmp_path).train] == [f"new{character}line.png", "b.png"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(("name", "separator"), [("train.txt", " "), ("train.csv", ",")])
def test_a_line_is_counted_as_editors_count(tmp_path: Path, name: str, separator: str, end: str) -> None:
    lines = ["", f"x\u2028y.png{separator}cat", "", "alone"]
    (tmp_path / name).write_text(end.join(lines), encoding="utf-8", newline="")
    with pytest.raises(DataError, match=r"line 4: expected .*, got 'alone'"):
        list_images(tmp_path)


def test_a_row_of_several_lines_is_named_by_its_first(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text('a.png,cat\n"b\n.png",dog\n"c.png,cat\nd.png,dog\n')
    with pytest.raises(DataError, match=r"line 4: expected 'path,label', got 'c.png,cat\\nd.png,dog'"):
        list_images(tmp_path)
    (tmp_path / "train.csv").write_text('a.png,cat\n"' + "b.png,dog\n" * 20_000)
    with pytest.raises(DataError, match=r"line 2: field larger than .*; see whether a quotation mark is missing\."):
        list_images(tmp_path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("train.txt", "a" * 10**6),
        ("train.txt", "../" + "a" * 10**6 + " 0"),
        ("train.txt", "a.png cat\nb.png " + "a" * 10**6),
        ("train.csv", "a.png,cat\n" + "a," * 10**6),
        ("train.csv", "path,label" + ",width" * 10**5 + "\na.png"),
    ],
)
def test_of_a_long_line_a_message_shows_the_beginning(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    with pytest.raises(DataError) as error:
        list_images(tmp_path)
    assert len(str(error.value)) < len(str(tmp_path)) + 400


@pytest.mark.parametrize(("name", "separator"), [("train.csv", ","), ("train.txt", " ")])
def test_names_without_number_are_no_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, separator: str
) -> None:
    """A list with the label before the path has as many classes as images."""
    monkeypatch.setattr(image_list, "MAX_CLASSES", 100)
    lines = [f"cat{separator}images/{number}.jpg\n" for number in range(101)]
    (tmp_path / name).write_text(f"#{separator}#\n" + "".join(lines))
    with pytest.raises(DataError, match=r"101 different labels are more than 100 classes; write the path before the"):
        list_images(tmp_path)


def test_many_classes_by_name(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("".join(f"{number}.jpg,species {number}\n" for number in range(20_000)))
    listing = list_images(tmp_path)
    assert len(listing.class_names) == 20_000
    assert [listing.class_names[index] for index in (2, 19_999)] == ["species 2", "species 19999"]
    (tmp_path / "classes.txt").write_text("\n".join(reversed(listing.class_names)))
    assert list_images(tmp_path).class_names == tuple(reversed(listing.class_names))


def test_numbers_of_thousands_of_digits(tmp_path: Path) -> None:
    """int() refuses them."""
    (tmp_path / "train.csv").write_text(f"a.png,{'1' * 5000}\nb.png,0\n")
    with pytest.raises(DataError, match=r"label '1{77}\.\.\.' is too large"):
        list_images(tmp_path)
    (tmp_path / "train.csv").write_text(f"a.png,{'0' * 5000}1\nb.png,0\n")
    assert [file.label for file in list_images(tmp_path).train] == ["1", "0"]
    (tmp_path / "train.csv").write_text(f"a.png,cat{'1' * 5000}\nb.png,cat{'0' * 5000}2\n")
    assert list_images(tmp_path).class_names == (f"cat{'0' * 5000}2", f"cat{'1' * 5000}")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    (tmp_path / "train.csv").write_text(f"a.png,{'1' * 5000}\nb.png,0\n")
    with pytest.raises(DataError, match=r"label '1{77}\.\.\.' is none of the 2 known classes"):
        list_images(tmp_path)


def test_natural_order_is_that_of_the_numbers() -> None:
    names = ["a0", "a00", "a1", "a01b", "a2", "a10", "a" + "9" * 4999, "a1" + "0" * 4999]
    assert natural_sorted(reversed(names)) == names


@pytest.mark.parametrize("spellings", [(COMPOSED, APART), (APART, COMPOSED)])
def test_two_spellings_of_a_label_are_one_class(tmp_path: Path, spellings: tuple[str, str]) -> None:
    rows = [f"{number}.png,{name}\n" for number, name in enumerate((*spellings, "bar"))]
    (tmp_path / "train.csv").write_text("".join(rows), encoding="utf-8")
    (tmp_path / "test.csv").write_text("".join(reversed(rows)), encoding="utf-8")
    listing = list_images(tmp_path)
    assert listing.class_names == ("bar", spellings[0])
    assert [file.label for file in listing.train] == [spellings[0], spellings[0], "bar"]
    assert listing.test is not None
    assert [file.label for file in listing.test] == ["bar", spellings[0], spellings[0]]


def test_classes_txt_must_not_spell_a_class_in_two_ways(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text(f"{COMPOSED}\nbar\n{APART}\n", encoding="utf-8")
    (tmp_path / "train.csv").write_text("a.png,0\nb.png,1\nc.png,2\n")
    with pytest.raises(DataError, match=f"names a class twice, '{COMPOSED}'; class names must differ"):
        list_images(tmp_path)


def test_two_folders_of_one_class_are_refused(tmp_path: Path) -> None:
    for number, name in enumerate((COMPOSED, APART, "bar")):
        (tmp_path / "train" / name).mkdir(parents=True)
        for copy in range(2):
            Image.new("RGB", (8, 8), (number, copy, 0)).save(tmp_path / "train" / name / f"{copy}.png")
    sentence = (
        "1 class has two names that look the same, an accent as one character or as two; put all images of a class "
        f"into one folder ({COMPOSED})."
    )
    assert sentence in check_data(DataConfig(source="image-folder"), tmp_path).problems
    with pytest.raises(DataError) as error:
        load_image_folder(tmp_path, Preprocessing(height=8, width=8))
    assert str(error.value) == sentence
