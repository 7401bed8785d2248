"""What the data doctor found, as values, as sentences and as a table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cbn_deploy.data.problems import class_problems, sentence_about
from cbn_deploy.runtime.description import shot_group

__all__ = ["ClassCount", "DataReport", "Group", "Unreadable"]

# Fewer training images than this cannot show a class's variety; fewer than two leave nothing to learn from.
_VERY_SMALL = 5
_SHOWN = 10
# Kinds of images that people have and that are not read: not to be passed over in silence.
_OTHER_IMAGES = frozenset(
    {".gif", ".tif", ".tiff", ".heic", ".heif", ".avif", ".jfif", ".jpe", ".jp2", ".jxl", ".ppm", ".pgm"}
)


@dataclass(frozen=True)
class ClassCount:
    """Readable images of one class, after the hold-out: those that are trained on and those that are tested on."""

    name: str
    train: int
    test: int


@dataclass(frozen=True)
class Unreadable:
    """A file that cannot be used, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Group:
    """Images with identical pixels, and the classes they are filed under."""

    names: tuple[str, ...]
    labels: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class DataReport:
    """The doctor's findings.

    Attributes:
        name: of the data set.
        classes: readable images of every class, in label order.
        has_test: whether the user gave test images (otherwise those of ``classes`` are held out of train).
        test_source: the folder or list that they are from, if they are files.
        images: images examined.
        unreadable: files that cannot be used.
        too_large: images that are left alone for their size.
        duplicates: groups of identical images within train.
        leaks: groups of identical images in train and test.
        conflicts: groups of identical images under different classes.
        sizes: ((width, height), images), most frequent first.
        kinds: (file format and colour mode, images), most frequent first.
        ignored: files in the folders that are no images by their name.
        runs: folders beside the classes that hold results of cbn-train.
        hidden: folders beside the classes that hold images but are hidden by their names.
    """

    name: str
    classes: tuple[ClassCount, ...]
    has_test: bool
    test_source: str | None
    images: int
    unreadable: tuple[Unreadable, ...]
    too_large: tuple[Unreadable, ...]
    duplicates: tuple[Group, ...]
    leaks: tuple[Group, ...]
    conflicts: tuple[Group, ...]
    sizes: tuple[tuple[tuple[int, int], int], ...]
    kinds: tuple[tuple[str, int], ...]
    ignored: tuple[str, ...]
    runs: tuple[str, ...]
    hidden: tuple[str, ...]

    @property
    def rho(self) -> float | None:
        """Largest over smallest training count; ``None`` if a class has no training image."""
        counts = [c.train for c in self.classes]
        return max(counts) / min(counts) if counts and min(counts) > 0 else None

    @property
    def shots(self) -> dict[str, int]:
        """Classes in each shot group (classes without training images in none)."""
        groups = [shot_group(c.train) for c in self.classes if c.train]
        return {group: groups.count(group) for group in ("many", "medium", "few")}

    @property
    def problems(self) -> tuple[str, ...]:
        """One sentence for each kind of problem: what is wrong and what to do. Empty: nothing was found."""
        return tuple(sentence for sentence in (*self._class_problems(), *self._image_problems()) if sentence)

    @property
    def notes(self) -> tuple[str, ...]:
        """One sentence for each thing to know that is in the nature of long-tailed data."""
        no_test = [c.name for c in self.classes if self.has_test and c.train and not c.test]
        small = [c.name for c in self.classes if 0 < c.train < _VERY_SMALL]
        single = [c.name for c in self.classes if not self.has_test and c.train and not c.test]
        sentences = (
            sentence_about(no_test, "class has", "classes have", "no test images, so its recall stays unknown."),
            sentence_about(
                small, "class has", "classes have", f"fewer than {_VERY_SMALL} training images; expect low recall."
            ),
            sentence_about(
                single, "class has", "classes have", "one image only, so none is held out and its recall stays unknown."
            ),
            sentence_about(
                list(self.runs), "folder holds", "folders hold", "results of cbn-train and nothing to train on."
            ),
            sentence_about(
                list(self.hidden),
                "folder with images is",
                "folders with images are",
                "left out for the dot that the name begins with; rename what is a class.",
            ),
        )
        return tuple(sentence for sentence in sentences if sentence)

    def _class_problems(self) -> list[str]:
        given = {c.name: c.train if self.has_test else c.train + c.test for c in self.classes}
        test = {c.name: c.test for c in self.classes} if self.has_test else None
        return class_problems(self.name, list(given), given, test)

    def _image_problems(self) -> list[str]:
        def first(groups: tuple[Group, ...]) -> list[str]:
            return [" = ".join(group.names[:2]) for group in groups]

        return [
            sentence_about(
                [file.name for file in self.unreadable],
                "file is",
                "files are",
                "unreadable; replace or remove them before training.",
            ),
            sentence_about(
                [file.name for file in self.too_large],
                "image is",
                "images are",
                "too large; resize or remove them before training.",
            ),
            sentence_about(
                [name for name in self.ignored if PurePath(name).suffix.lower() in _OTHER_IMAGES],
                "image is",
                "images are",
                "of a kind that is not read and would be left out; convert them to PNG or JPEG.",
            ),
            sentence_about(
                first(self.leaks),
                "image is",
                "images are",
                "in train and in test, which flatters the result; remove them from train.",
            ),
            sentence_about(
                first(self.conflicts), "image is", "images are", "filed under several classes; keep the right one only."
            ),
            sentence_about(
                first(self.duplicates),
                "image is",
                "images are",
                "in train more than once, which inflates its class's count; keep one copy.",
            ),
        ]

    def render(self, console: Console) -> None:
        """Print counts, sizes, notes and problems."""
        table = Table(title=f"{escape(self.name)}: {self.images} images, {len(self.classes)} classes")
        table.add_column("class")
        table.add_column("train", justify="right")
        table.add_column("test" if self.has_test else "held out", justify="right")
        table.add_column("shots")
        for c in self.classes:
            table.add_row(escape(c.name), str(c.train), str(c.test), shot_group(c.train) if c.train else "none")
        console.print(table)
        rho = "undefined" if self.rho is None else f"{self.rho:.1f}"
        shots = ", ".join(f"{count} {group}" for group, count in self.shots.items())
        console.print(f"rho (largest / smallest class): {rho}; shots: {shots}")
        sizes = ", ".join(f"{w}x{h} ({count})" for (w, h), count in self.sizes[:3])
        more = f" and {len(self.sizes) - 3} other sizes" if len(self.sizes) > 3 else ""
        console.print(f"image sizes: {sizes or 'none'}{more}; {', '.join(f'{kind} ({n})' for kind, n in self.kinds)}")
        if not self.has_test:
            held_out = sum(c.test for c in self.classes)
            console.print(
                f"no test images given: {held_out} are held out, a quarter of every class and at most 50 of it"
            )
        elif self.test_source is not None:
            console.print(f"test images: those of {escape(self.test_source)}")
        if self.ignored:
            console.print(
                f"{len(self.ignored)} file(s) ignored, not images by name (such as {escape(self.ignored[0])})"
            )
        for file in self.unreadable[:_SHOWN]:
            console.print(f"  unreadable: {escape(file.name)}: {escape(file.reason)}")
        for file in self.too_large[:_SHOWN]:
            console.print(f"  too large: {escape(file.name)}: {escape(file.reason)}")
        for note in self.notes:
            console.print(f"Note: {escape(note)}")
        if not self.problems:
            console.print("[green]No problems found.[/green]")
        for problem in self.problems:
            console.print(f"[yellow]Problem:[/yellow] {escape(problem)}")
