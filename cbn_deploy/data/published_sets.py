"""ImageNet-LT, Places-LT and iNaturalist 2018 as published: list files, line counts, class folders, path layouts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

__all__ = [
    "AS_LISTED",
    "IMAGENET_LT",
    "INATURALIST_2018",
    "PLACES_LT",
    "PUBLISHED_SETS",
    "Layout",
    "PublishedSet",
    "Split",
]

Split = Literal["train", "val", "test"]

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Layout:
    """One way in which the images lie on disk.

    Attributes:
        name: for people, such as "in train/CLASS/FILE".
        place: (path as listed, class name) -> path in this layout; a path that it cannot place stays as it is.
    """

    name: str
    place: Callable[[str, str], str]


@dataclass(frozen=True, kw_only=True)
class PublishedSet:
    """What the literature agrees on about one data set.

    Attributes:
        source: its name in a ``DataConfig``.
        title: its name in the literature.
        lists: the file name of each split's list.
        lines: the lines of each list.
        test: the split that results are reported on.
        classes: K.
        class_sizes: training images of the largest and of the smallest class.
        folders: below the folder of the lists, where the files that are handed around usually unpack to.
        class_name: path as listed -> its folder's name for the class, which depends on the folder alone; "" if the
            path has none.
        layouts: where the images may lie; the first is as listed.
        mean: per-channel mean that the literature normalises with.
        std: per-channel standard deviation.
    """

    source: str
    title: str
    lists: Mapping[Split, str]
    lines: Mapping[Split, int]
    test: Split
    classes: int
    class_sizes: tuple[int, int]
    folders: tuple[str, ...]
    class_name: Callable[[str], str]
    layouts: tuple[Layout, ...]
    mean: tuple[float, float, float] = _IMAGENET_MEAN
    std: tuple[float, float, float] = _IMAGENET_STD


def _folder(path: str) -> str:
    """The folder that the file lies in: a synset (n01440764), or a category's number (7477)."""
    parts = path.rsplit("/", 2)
    return parts[-2] if len(parts) > 1 and parts[-2] not in (".", "..") else ""


def _places_class(path: str) -> str:
    """ "airfield", and "parking_garage-indoor" in either layout (``p/parking_garage/indoor`` in data_256)."""
    parts = path.split("/")
    if "data_256" in parts:
        return "-".join(parts[parts.index("data_256") + 2 : -1])
    return parts[-2] if len(parts) > 1 and parts[-2] != "val_256" else ""


def _flat_validation(path: str, class_name: str) -> str:
    """ImageNet's validation images as the archive unpacks them: all in one folder."""
    return path.replace(f"val/{class_name}/", "val/", 1) if f"val/{class_name}/" in path else path


def _places_root(path: str) -> tuple[str, bool, str] | None:
    """What precedes the split's folder, whether it is the validation folder, and the file's name."""
    parts = path.split("/")
    for index, part in enumerate(parts[:-1]):
        if part in ("train", "val", "data_256", "val_256"):
            return "".join(f"{before}/" for before in parts[:index]), part.startswith("val"), parts[-1]
    return None


def _places_by_class(path: str, class_name: str) -> str:
    """``train/CLASS/FILE`` and ``val/CLASS/FILE``: places365standard_easyformat."""
    known = _places_root(path)
    if known is None:
        return path
    root, validation, file = known
    return f"{root}{'val' if validation else 'train'}/{class_name}/{file}"


def _places_by_letter(path: str, class_name: str) -> str:
    """``data_256/LETTER/CLASS/FILE`` and ``val_256/FILE``: the archives train_256_places365standard and val_256."""
    known = _places_root(path)
    if known is None:
        return path
    root, validation, file = known
    if validation:
        return f"{root}val_256/{file}"
    return f"{root}data_256/{class_name[:1]}/{class_name.replace('-', '/')}/{file}"


AS_LISTED = Layout("as listed", lambda path, _: path)

IMAGENET_LT = PublishedSet(
    source="imagenet-lt",
    title="ImageNet-LT",
    lists={"train": "ImageNet_LT_train.txt", "val": "ImageNet_LT_val.txt", "test": "ImageNet_LT_test.txt"},
    lines={"train": 115_846, "val": 20_000, "test": 50_000},
    test="test",
    classes=1000,
    class_sizes=(1280, 5),
    folders=("ImageNet_LT",),
    class_name=_folder,
    layouts=(AS_LISTED, Layout("in val/FILE", _flat_validation)),
)

PLACES_LT = PublishedSet(
    source="places-lt",
    title="Places-LT",
    lists={"train": "Places_LT_train.txt", "val": "Places_LT_val.txt", "test": "Places_LT_test.txt"},
    lines={"train": 62_500, "val": 7_300, "test": 36_500},
    test="test",
    classes=365,
    class_sizes=(4980, 5),
    folders=("Places_LT", "Places_LT_v2"),
    class_name=_places_class,
    layouts=(
        AS_LISTED,
        Layout("in train/CLASS/FILE and val/CLASS/FILE", _places_by_class),
        Layout("in data_256/LETTER/CLASS/FILE and val_256/FILE", _places_by_letter),
    ),
)

INATURALIST_2018 = PublishedSet(
    source="inaturalist2018",
    title="iNaturalist 2018",
    lists={"train": "iNaturalist18_train.txt", "val": "iNaturalist18_val.txt"},
    lines={"train": 437_513, "val": 24_426},
    test="val",
    classes=8142,
    class_sizes=(1000, 2),
    folders=("iNaturalist18",),
    class_name=_folder,
    layouts=(AS_LISTED,),
    mean=(0.466, 0.471, 0.380),
    std=(0.195, 0.194, 0.192),
)

PUBLISHED_SETS: Mapping[str, PublishedSet] = MappingProxyType(
    {published.source: published for published in (IMAGENET_LT, PLACES_LT, INATURALIST_2018)}
)
"""By ``DataConfig.source``."""
