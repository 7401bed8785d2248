"""The folder of an unfinished table: what has been done survives a kill at any moment.

``OUT.parts/`` holds ``plan.json`` (what the run is about), ``images.jsonl`` (the names of all images, as they were
found when the run began) and ``part-FIRST-END`` files with the rows of the images FIRST <= i < END. Every file appears
whole or not at all. The plan is written last and removed first: a folder with a plan is one that can be gone on with.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from typing_extensions import Self

from cbn_deploy.atomic import atomic_path
from cbn_deploy.errors import OutputError
from cbn_deploy.prediction.classifier import ImagePrediction
from cbn_deploy.prediction.table import TableFormat

__all__ = ["PartsFolder"]

_PLAN, _NAMES, _LOCK = "plan.json", "images.jsonl", "lock"
_OURS = re.compile(r"plan\.json|images\.jsonl|lock|part-\d+-\d+\.\w+|joined\.\w+|\..*\.tmp")


class PartsFolder:
    """The parts of the table ``output``; to be entered, which keeps other processes out. Gone when the table is there.

    Args:
        output: the table to be.
        table: how it is written.

    Raises:
        OutputError: (on entering) the folder cannot be made, another process is at work in it, or it holds files that
            are not a table's parts.
    """

    def __init__(self, output: Path, table: TableFormat) -> None:
        self._output, self._table = output, table
        self.path = output.with_name(output.name + ".parts")

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                strangers = [entry.name for entry in self.path.iterdir() if not _OURS.fullmatch(entry.name)]
                if strangers:
                    raise OutputError(
                        f"{self.path} holds {strangers[0]!r}, which is no part of a table; move that folder away."
                    )
                lock = stack.enter_context((self.path / _LOCK).open("ab"))
            except OSError as error:
                raise _cannot_write(self.path, error) from error
            try:
                # The kernel lets go of it when the process ends, however it ends.
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise OutputError(f"Another process is writing {self._output}; wait for it to end.") from error
            for leftover in self.path.glob(".*.tmp"):
                leftover.unlink()
            self._held = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        if not self.begun:
            shutil.rmtree(self.path, ignore_errors=True)
        self._held.close()

    @property
    def begun(self) -> bool:
        """Whether there is a plan to go on with."""
        return (self.path / _PLAN).is_file()

    def begin(self, plan: Mapping[str, Any], names: Iterator[str]) -> int:
        """Start anew: write down all ``names``, and the plan if there are any; their number."""
        for entry in self.path.iterdir():
            if entry.name != _LOCK:
                entry.unlink()
        count = 0
        with atomic_path(self.path / _NAMES) as temporary, temporary.open("w", encoding="ascii") as file:
            for count, name in enumerate(names, start=1):  # noqa: B007 - the last one counts them
                file.write(json.dumps(name) + "\n")
        if count:
            with atomic_path(self.path / _PLAN) as temporary:
                temporary.write_text(json.dumps({**plan, "images": count}), encoding="ascii")
        return count

    def plan(self) -> dict[str, Any]:
        """What :meth:`begin` was given, and ``images``, their number.

        Raises:
            OutputError: it cannot be read.
        """
        try:
            plan: dict[str, Any] = json.loads((self.path / _PLAN).read_bytes())
            return plan
        except (OSError, ValueError) as error:
            raise OutputError(f"{self.path} is damaged ({error}); delete it to start anew.") from error

    def names(self) -> Iterator[str]:
        """The names of all images, in order."""
        with (self.path / _NAMES).open(encoding="ascii") as lines:
            for line in lines:
                yield json.loads(line)

    def done(self) -> list[tuple[int, int]]:
        """The ranges of images whose rows are there, ascending.

        Raises:
            OutputError: they overlap, which no run makes them do.
        """
        ranges = sorted(self._parts())
        for (_, end), (begin, _) in itertools.pairwise(ranges):
            if begin < end:
                raise OutputError(f"{self.path} is damaged (parts overlap at image {begin}); delete it to start anew.")
        return ranges

    def add(self, begin: int, rows: Sequence[ImagePrediction]) -> None:
        """Keep the rows of the images from number ``begin`` on.

        Raises:
            OutputError: the disk is full; what was there stays.
        """
        end = begin + len(rows)
        with atomic_path(self.path / f"part-{begin:012}-{end:012}{self._table.suffix}") as temporary:
            self._table.write(temporary, rows)

    def finish(self, about: Mapping[str, str]) -> None:
        """Join the parts into the table, which appears whole or not at all, and remove them.

        Raises:
            OutputError: the disk is full, or a part cannot be read; the parts stay.
        """
        parts = self._parts()
        joined = self.path / f"joined{self._table.suffix}"
        try:
            with atomic_path(joined) as temporary:
                self._table.join([parts[key] for key in sorted(parts)], temporary, about)
            joined.replace(self._output)
            (self.path / _PLAN).unlink()
        except (OSError, ValueError) as error:  # ValueError: what pyarrow raises of a damaged file
            raise OutputError(f"Cannot write {self._output} from {self.path}: {error}.") from error

    def _parts(self) -> dict[tuple[int, int], Path]:
        found = {}
        for path in self.path.glob(f"part-*{self._table.suffix}"):
            _, begin, end = path.stem.split("-")
            found[int(begin), int(end)] = path
        return found


def _cannot_write(path: Path, error: OSError) -> OutputError:
    return OutputError(f"Cannot write to {path}: {error.strerror or error}; choose another --out.")
