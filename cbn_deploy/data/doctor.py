"""The data doctor: look at every image once and say what would spoil a training run or its result."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from cbn_deploy.data.config import DataConfig
from cbn_deploy.data.data_report import ClassCount, DataReport, Group, Unreadable
from cbn_deploy.data.image_set import ImageSet, image_kind, read_image
from cbn_deploy.data.list_doctor import check_published
from cbn_deploy.data.list_report import ListReport
from cbn_deploy.data.listing import LabelledFile, Listing, held_out_counts, printable
from cbn_deploy.data.load import load_data, photograph_preprocessing
from cbn_deploy.data.published_sets import PUBLISHED_SETS
from cbn_deploy.data.user_images import list_images
from cbn_deploy.errors import CbnError, DataError, ImageTooLargeError
from cbn_deploy.runtime.description import Preprocessing
from cbn_deploy.runtime.preprocessing import resized_size

__all__ = ["check_data"]

Progress = Callable[[int, int], None]
Split = Literal["train", "test"]


@dataclass(frozen=True)
class _Sample:
    """One image to look at."""

    split: Split
    label: str
    name: str
    read: Callable[[], Image.Image]
    path: Path | None = None


@dataclass
class _Findings:
    """What looking at the images brings up."""

    unreadable: list[Unreadable] = field(default_factory=list)
    too_large: list[Unreadable] = field(default_factory=list)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    by_content: dict[bytes, list[_Sample]] = field(default_factory=lambda: defaultdict(list))


def check_data(
    config: DataConfig, data_dir: Path | None = None, progress: Progress | None = None
) -> DataReport | ListReport:
    """Decode every image and report counts, damage, duplicates and leaks. Damaged files are reported, never raised.

    Of images too elongated to be resized as ``config`` says, which training would refuse, the size is reported.

    Two images are the same if their decoded RGB pixels are, whatever the files' names and formats. Of the published
    sets, too large for that, every line and file entry but only a sample of images is examined (``check_published``).

    Args:
        config: which data set; for an image folder even a set that ``load_data`` refuses is examined.
        data_dir: where it lies.
        progress: called with (images done, images in all).

    Raises:
        DataError: there is nothing to examine, or a list is malformed.
    """
    if data_dir is None and (config.source == "image-folder" or config.source in PUBLISHED_SETS):
        raise DataError(f"{config.source} needs its images: say where they are with --data DIR.")
    if data_dir is not None and config.source in PUBLISHED_SETS:
        lists = None if config.lists is None else Path(config.lists)
        return check_published(PUBLISHED_SETS[config.source], data_dir, lists, progress)
    if data_dir is not None and config.source == "image-folder":
        listing = list_images(data_dir)
        samples = _listed_samples(listing)
        findings = _examine(samples, photograph_preprocessing(config), progress)
        return _report(listing.root.resolve().name, listing, samples, findings)
    data = load_data(config, data_dir)
    samples = [*_set_samples("train", data.train, data.class_names), *_set_samples("test", data.test, data.class_names)]
    listing = Listing(root=Path(data.name), class_names=data.class_names, train=(), test=())
    return _report(data.name, listing, samples, _examine(samples, data.preprocessing, progress))


def _listed_samples(listing: Listing) -> list[_Sample]:
    def samples(split: Split, files: Sequence[LabelledFile]) -> list[_Sample]:
        return [
            _Sample(split, f.label, _short(f.path, listing.root), partial(read_image, f.path), f.path) for f in files
        ]

    return [*samples("train", listing.train), *samples("test", listing.test or ())]


def _set_samples(split: Split, images: ImageSet, class_names: Sequence[str]) -> list[_Sample]:
    return [
        _Sample(split, class_names[label], f"{split} {images.name(index)}", partial(images.image, index))
        for index, label in enumerate(images.labels.tolist())
    ]


def _short(path: Path, root: Path) -> str:
    return printable(path.relative_to(root) if path.is_relative_to(root) else path)


def _examine(samples: Sequence[_Sample], preprocessing: Preprocessing, progress: Progress | None) -> _Findings:
    findings = _Findings()
    for done, sample in enumerate(samples, start=1):
        try:
            image = sample.read()
            # Random crops could take any shape, but which images are held out or calibrated on is decided later.
            resized_size(image.size, preprocessing)
        except CbnError as error:
            kind = findings.too_large if isinstance(error, ImageTooLargeError) else findings.unreadable
            kind.append(Unreadable(sample.name, printable(str(error))))
        else:
            findings.sizes[image.size] += 1
            findings.kinds["array RGB" if sample.path is None else image_kind(sample.path)] += 1
            findings.by_content[_fingerprint(image)].append(sample)
        if progress is not None:
            progress(done, len(samples))
    return findings


def _fingerprint(image: Image.Image) -> bytes:
    digest = hashlib.sha256(f"{image.width}x{image.height}".encode())
    digest.update(image.tobytes())
    return digest.digest()


def _class_counts(listing: Listing, findings: _Findings) -> tuple[ClassCount, ...]:
    counts = Counter((sample.split, sample.label) for group in findings.by_content.values() for sample in group)
    train, test = (
        np.array([counts[split, label] for label in listing.class_names], dtype=np.int64) for split in ("train", "test")
    )
    if listing.test is None:
        test = held_out_counts(train)
        train = train - test
    return tuple(map(ClassCount, listing.class_names, train.tolist(), test.tolist()))


def _report(name: str, listing: Listing, samples: Sequence[_Sample], findings: _Findings) -> DataReport:
    groups = [group for group in findings.by_content.values() if len(group) > 1]
    duplicates, leaks, conflicts = [], [], []
    for group in groups:
        train = [sample for sample in group if sample.split == "train"]
        record = Group(tuple(sample.name for sample in group), tuple(sorted({sample.label for sample in group})))
        if len(train) > 1:
            duplicates.append(
                Group(tuple(sample.name for sample in train), tuple(sorted({sample.label for sample in train})))
            )
        if 0 < len(train) < len(group):
            leaks.append(record)
        if len(record.labels) > 1:
            conflicts.append(record)
    return DataReport(
        name=name,
        classes=_class_counts(listing, findings),
        has_test=listing.test is not None,
        test_source=listing.test_source,
        images=len(samples),
        unreadable=tuple(findings.unreadable),
        too_large=tuple(findings.too_large),
        duplicates=tuple(duplicates),
        leaks=tuple(leaks),
        conflicts=tuple(conflicts),
        sizes=tuple(sorted(findings.sizes.items(), key=lambda item: (-item[1], item[0]))),
        kinds=tuple(findings.kinds.most_common()),
        ignored=tuple(_short(path, listing.root) for path in listing.ignored),
        runs=tuple(_short(path, listing.root) for path in listing.runs),
        hidden=tuple(_short(path, listing.root) for path in listing.hidden),
    )
