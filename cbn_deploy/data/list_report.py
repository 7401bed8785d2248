"""What the data doctor found out about a published set's lists and files, as values, as sentences and as a table."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cbn_deploy.data.data_report import Group, Unreadable
from cbn_deploy.data.problems import sentence_about
from cbn_deploy.data.published_sets import Split
from cbn_deploy.runtime.description import shot_group

__all__ = ["ListReport", "Some", "SplitReport"]


@dataclass(frozen=True)
class Some:
    """How many there are, and the first few of them."""

    count: int
    first: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class SplitReport:
    """One list and its files.

    Attributes:
        split: "train", "val" or "test".
        source: the list's file name.
        lines: images that it lists.
        published_lines: lines of the published list.
        layout: where the files were found: "as listed", or the layout they lie in instead.
        missing: files that are not there.
        empty: files of 0 bytes.
        sampled: files that were decoded.
        unreadable: those of them that cannot be used.
    """

    split: Split
    source: str
    lines: int
    published_lines: int
    layout: str
    missing: Some
    empty: Some
    sampled: int
    unreadable: tuple[Unreadable, ...]


@dataclass(frozen=True, kw_only=True)
class ListReport:
    """The doctor's findings.

    Attributes:
        name: of the data set.
        root: the folder that paths are relative to.
        class_names: K names in label order.
        published_classes: K of the published set.
        published_class_sizes: training images of its largest and of its smallest class.
        train_counts: K listed training images.
        test_counts: K listed test images.
        splits: the lists that are there.
        duplicates: groups of listed files of one list that are one file, or byte for byte the same.
        leaks: the same across lists.
        conflicts: such groups under different labels.
        sizes: ((width, height), images) of the decoded sample, most frequent first.
        kinds: (file format and colour mode, images) of the sample, most frequent first.
    """

    name: str
    root: str
    class_names: tuple[str, ...]
    published_classes: int
    published_class_sizes: tuple[int, int]
    train_counts: tuple[int, ...]
    test_counts: tuple[int, ...]
    splits: tuple[SplitReport, ...]
    duplicates: tuple[Group, ...]
    leaks: tuple[Group, ...]
    conflicts: tuple[Group, ...]
    sizes: tuple[tuple[tuple[int, int], int], ...]
    kinds: tuple[tuple[str, int], ...]

    @property
    def rho(self) -> float | None:
        """Largest over smallest training count; ``None`` if a class has no training image."""
        return max(self.train_counts) / min(self.train_counts) if min(self.train_counts) > 0 else None

    @property
    def shots(self) -> dict[str, int]:
        """Classes in each shot group (classes without training images in none)."""
        groups = [shot_group(count) for count in self.train_counts if count]
        return {group: groups.count(group) for group in ("many", "medium", "few")}

    @property
    def problems(self) -> tuple[str, ...]:
        """One sentence for each kind of problem: what is wrong and what to do. Empty: nothing was found."""
        sentences = [*self._list_problems(), *(s for split in self.splits for s in self._file_problems(split))]
        return tuple(sentence for sentence in (*sentences, *self._copy_problems()) if sentence)

    def _list_problems(self) -> list[str]:
        classes = len(self.class_names)
        no_train = [f"label {label}" for label, count in enumerate(self.train_counts) if not count]
        no_test = [f"label {label}" for label, count in enumerate(self.test_counts) if not count]
        return [
            *(
                f"{split.source} has {split.lines:,} images, the published list {split.published_lines:,}; "
                "get it again, or use image-folder for a set of your own."
                for split in self.splits
                if split.lines != split.published_lines
            ),
            ""
            if classes == self.published_classes
            else f"The training list has {classes} classes, {self.name} {self.published_classes}; get the list again.",
            self._class_sizes_problem(),
            sentence_about(no_train, "class has", "classes have", "no training images; get the training list again."),
            sentence_about(no_test, "class has", "classes have", "no test images, so no recall can be given."),
        ]

    def _class_sizes_problem(self) -> str:
        """Another draw of as many images from as many classes."""
        same_totals = len(self.class_names) == self.published_classes and all(
            split.lines == split.published_lines for split in self.splits if split.split == "train"
        )
        found, published = (max(self.train_counts), min(self.train_counts)), self.published_class_sizes
        if not same_totals or not found[1] or found == published:
            return ""
        return (
            f"The training list has {found[0]:,} to {found[1]} images a class, {self.name} {published[0]:,} to "
            f"{published[1]}; get the list again."
        )

    def _file_problems(self, split: SplitReport) -> list[str]:
        missing, advice = split.missing, "unpack the images again"
        if missing.count == split.lines:
            advice = f"--data must be the folder that the list's paths begin in, not {self.root}"
        return [
            _counted(missing, split, "missing", advice),
            _counted(split.empty, split, "empty (0 bytes)", "unpack the images again"),
            sentence_about(
                [file.name for file in split.unreadable],
                f"of {split.sampled} sampled files of {split.source} is",
                f"of {split.sampled} sampled files of {split.source} are",
                "unreadable; unpack the images again.",
            ),
        ]

    def _copy_problems(self) -> list[str]:
        def first(groups: tuple[Group, ...]) -> list[str]:
            return [" = ".join(group.names[:2]) for group in groups]

        return [
            sentence_about(
                first(self.leaks),
                "image is",
                "images are",
                "in two lists, which flatters the result; keep them in the test list only.",
            ),
            sentence_about(
                first(self.conflicts), "image is", "images are", "listed under several labels; keep the right one only."
            ),
            sentence_about(
                first(self.duplicates), "image is", "images are", "in one list more than once; keep one line only."
            ),
        ]

    def render(self, console: Console) -> None:
        """Print lists, counts and problems."""
        table = Table(title=f"{escape(self.name)} in {escape(self.root)}: {len(self.class_names)} classes")
        table.add_column("list", no_wrap=True)
        for column in ("images", "published", "missing", "empty", "read", "damaged"):
            table.add_column(column, justify="right")
        for s in self.splits:
            counts = (s.lines, s.published_lines, s.missing.count, s.empty.count, s.sampled, len(s.unreadable))
            table.add_row(escape(s.source), *(f"{count:,}" for count in counts))
        console.print(table)
        for layout in dict.fromkeys(s.layout for s in self.splits):
            lists = ", ".join(s.source for s in self.splits if s.layout == layout)
            console.print(f"files lie {escape(layout)}: {escape(lists)}")
        rho = "undefined" if self.rho is None else f"{self.rho:.1f}"
        shots = ", ".join(f"{count} {group}" for group, count in self.shots.items())
        console.print(
            f"training images a class: {min(self.train_counts)} ... {max(self.train_counts)}, "
            f"median {np.median(self.train_counts):g}; rho (largest / smallest class): {rho}; shots: {shots}"
        )
        sizes = ", ".join(f"{w}x{h} ({count})" for (w, h), count in self.sizes[:3])
        more = f" and {len(self.sizes) - 3} other sizes" if len(self.sizes) > 3 else ""
        kinds = ", ".join(f"{kind} ({count})" for kind, count in self.kinds)
        console.print(f"sampled image sizes: {sizes or 'none'}{more}; {kinds}")
        if not self.problems:
            console.print("[green]No problems found.[/green]")
        for problem in self.problems:
            console.print(f"[yellow]Problem:[/yellow] {escape(problem)}")


def _counted(some: Some, split: SplitReport, what: str, advice: str) -> str:
    """ "3 of 50,000 files of LIST are missing (a, b, ...); advice." or nothing if there are none."""
    if not some.count:
        return ""
    shown = ", ".join(some.first) + (", ..." if some.count > len(some.first) else "")
    verb = "is" if some.count == 1 else "are"
    return f"{some.count:,} of {split.lines:,} files of {split.source} {verb} {what} ({shown}); {advice}."
