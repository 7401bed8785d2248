"""The data doctor for published lists: every line and every file's entry is looked at, and a sample is decoded."""

from __future__ import annotations

import posixpath
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cbn_deploy.data.data_report import Group, Unreadable
from cbn_deploy.data.image_set import image_kind, read_image
from cbn_deploy.data.list_report import ListReport, Some, SplitReport
from cbn_deploy.data.published_lists import FileFacts, PlacedList, PublishedListing, file_facts, list_published
from cbn_deploy.data.published_sets import PublishedSet, Split
from cbn_deploy.errors import CbnError

__all__ = ["SAMPLED_FILES", "check_published"]

SAMPLED_FILES = 500
"""Files of each list that are decoded: damage in 1 % of them is found with a probability above 99 %."""

_SHOWN = 3
# JPEGs of one size are seldom many; images without compression all have one size, and comparing them all takes hours.
_COMPARED_FILES = 50
_DECODING_THREADS = 4

Row = tuple[Split, int]


@dataclass
class _Findings:
    """What decoding the sample brings up."""

    unreadable: dict[Split, list[Unreadable]] = field(default_factory=lambda: defaultdict(list))
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)


def check_published(
    published: PublishedSet,
    data_dir: Path,
    lists_dir: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ListReport:
    """Compare a published set's lists and files with what the literature counts.

    Looked for in every line: malformed text, labels without images, files that are missing or empty, a file that is
    listed twice (by its path, or through links). In a sample of :data:`SAMPLED_FILES` a list: images that cannot be
    decoded, and files of any list with the same bytes.

    Args:
        published: which set.
        data_dir: the folder that the lists' paths are relative to.
        lists_dir: the folder of the lists; ``data_dir`` if ``None``.
        progress: called with (sampled images done, sampled images in all).

    Raises:
        DataError: a list is missing or malformed; the message names its line.
    """
    listing = list_published(published, data_dir, lists_dir)
    facts = {split: file_facts(placed.paths) for split, placed in listing.splits.items()}
    sample = {split: _sample(facts[split]) for split in listing.splits}
    findings = _decode(listing, sample, progress)
    copies = [*_listed_twice(listing, facts), *_same_bytes(listing, facts, sample)]
    return _report(listing, facts, sample, findings, list(dict.fromkeys(copies)))


def _sample(facts: FileFacts) -> list[int]:
    present = np.flatnonzero(facts.sizes > 0)
    chosen = np.random.default_rng(0).permutation(present)[:SAMPLED_FILES]
    return sorted(chosen.tolist())


def _decode(
    listing: PublishedListing, sample: Mapping[Split, Sequence[int]], progress: Callable[[int, int], None] | None
) -> _Findings:
    rows = [(split, index) for split, indices in sample.items() for index in indices]

    def size(row: Row) -> tuple[int, int] | CbnError:
        try:
            return read_image(listing.splits[row[0]].paths[row[1]]).size
        except CbnError as error:
            return error

    findings = _Findings()
    with ThreadPoolExecutor(_DECODING_THREADS) as pool:
        for done, (row, result) in enumerate(zip(rows, pool.map(size, rows), strict=True), start=1):
            if isinstance(result, CbnError):
                findings.unreadable[row[0]].append(Unreadable(_name(listing, row), str(result)))
            else:
                findings.sizes[result] += 1
                findings.kinds[image_kind(listing.splits[row[0]].paths[row[1]])] += 1
            if progress is not None:
                progress(done, len(rows))
    return findings


def _listed_twice(listing: PublishedListing, facts: Mapping[Split, FileFacts]) -> list[tuple[Row, ...]]:
    """Rows that name one file: the same path, or links to the same data."""
    groups: dict[object, list[Row]] = defaultdict(list)
    for split, placed in listing.splits.items():
        rows = zip(facts[split].identities, placed.paths.names(), strict=True)
        for index, (identity, name) in enumerate(rows):
            # A missing file has no number, and some file systems number none.
            groups[identity if identity[1] else posixpath.normpath(name)].append((split, index))
    return [tuple(rows) for rows in groups.values() if len(rows) > 1]


def _same_bytes(
    listing: PublishedListing, facts: Mapping[Split, FileFacts], sample: Mapping[Split, Sequence[int]]
) -> list[tuple[Row, ...]]:
    """Sampled rows, each with the rows of any list whose other files have the same bytes."""
    rows_of_size = _rows_by_size(facts, {int(facts[s].sizes[i]) for s, indices in sample.items() for i in indices})

    def copies(row: Row) -> tuple[Row, ...]:
        split, index = row
        identity = facts[split].identities[index]
        others = [r for r in rows_of_size[int(facts[split].sizes[index])] if facts[r[0]].identities[r[1]] != identity]
        if not others:
            return ()
        content = _content(listing, row)
        same = [other for other in others[:_COMPARED_FILES] if content and _content(listing, other) == content]
        return tuple(sorted([row, *same], key=lambda r: (list(listing.splits).index(r[0]), r[1]))) if same else ()

    with ThreadPoolExecutor(_DECODING_THREADS) as pool:
        found = pool.map(copies, [(split, index) for split, indices in sample.items() for index in indices])
        return [rows for rows in found if rows]


def _rows_by_size(facts: Mapping[Split, FileFacts], wanted: set[int]) -> dict[int, list[Row]]:
    rows: dict[int, list[Row]] = defaultdict(list)
    for split, fact in facts.items():
        for index in np.flatnonzero(np.isin(fact.sizes, list(wanted))).tolist():
            rows[int(fact.sizes[index])].append((split, index))
    return rows


def _content(listing: PublishedListing, row: Row) -> bytes:
    try:
        return listing.splits[row[0]].paths[row[1]].read_bytes()
    except OSError:
        return b""


def _name(listing: PublishedListing, row: Row) -> str:
    placed = listing.splits[row[0]]
    return f"{placed.paths.name(row[1])}, {placed.rows.source.name} line {placed.rows.lines[row[1]]}"


def _report(
    listing: PublishedListing,
    facts: Mapping[Split, FileFacts],
    sample: Mapping[Split, Sequence[int]],
    findings: _Findings,
    copies: Iterable[tuple[Row, ...]],
) -> ListReport:
    published, classes = listing.published, len(listing.class_names)
    duplicates: list[Group] = []
    leaks: list[Group] = []
    conflicts: list[Group] = []
    for rows in copies:
        labels = sorted({int(listing.splits[split].rows.labels[index]) for split, index in rows})
        group = Group(tuple(_name(listing, row) for row in rows), tuple(listing.class_names[label] for label in labels))
        (leaks if len({split for split, _ in rows}) > 1 else duplicates).append(group)
        if len(labels) > 1:
            conflicts.append(group)

    def counts(split: Split) -> tuple[int, ...]:
        return tuple(np.bincount(listing.splits[split].rows.labels, minlength=classes).tolist())

    return ListReport(
        name=published.title,
        root=str(listing.root),
        class_names=listing.class_names,
        published_classes=published.classes,
        published_class_sizes=published.class_sizes,
        train_counts=counts("train"),
        test_counts=counts(published.test),
        splits=tuple(
            SplitReport(
                split=split,
                source=placed.rows.source.name,
                lines=len(placed.rows),
                published_lines=published.lines[split],
                layout=placed.layout.name,
                missing=_some(placed, facts[split].sizes < 0),
                empty=_some(placed, facts[split].sizes == 0),
                sampled=len(sample[split]),
                unreadable=tuple(findings.unreadable[split]),
            )
            for split, placed in listing.splits.items()
        ),
        duplicates=tuple(duplicates),
        leaks=tuple(leaks),
        conflicts=tuple(conflicts),
        sizes=tuple(sorted(findings.sizes.items(), key=lambda item: (-item[1], item[0]))),
        kinds=tuple(findings.kinds.most_common()),
    )


def _some(placed: PlacedList, chosen: NDArray[np.bool_]) -> Some:
    indices = np.flatnonzero(chosen)
    first = (f"{placed.paths.name(i)}, line {placed.rows.lines[i]}" for i in indices[:_SHOWN].tolist())
    return Some(len(indices), tuple(first))
