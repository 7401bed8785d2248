"""What a check leaves behind: rows by section, written to disk after every row's section and when time runs out."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


class SkippedError(Exception):
    """A section cannot run on this machine; the message says why."""


@dataclass
class Clock:
    """Seconds until a section, or the whole check, should stop."""

    deadline: float

    @classmethod
    def of(cls, seconds: float) -> Clock:
        """Starts now."""
        return cls(time.monotonic() + seconds)

    def left(self) -> float:
        """May be negative."""
        return self.deadline - time.monotonic()

    def over(self) -> bool:
        """Whether time is up."""
        return self.left() <= 0


@dataclass
class Section:
    """Rows of one section, and how it went: ``done``, ``cut short``, ``skipped`` or ``failed``."""

    name: str
    status: str = "running"
    reason: str = ""
    seconds: float = 0.0
    rows: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Report:
    """All sections; every change goes to ``path``."""

    path: Path
    machine: dict[str, Any]
    sections: list[Section] = field(default_factory=list)

    def run(self, name: str, budget: float, total: Clock, body: Callable[[Section, Clock], None]) -> None:
        """Run one section for at most ``budget`` seconds, and write what it found, however it ends."""
        section = Section(name)
        self.sections.append(section)
        begin = time.monotonic()
        clock = Clock.of(min(budget, total.left()))
        try:
            if clock.over():
                raise SkippedError("no time was left")
            body(section, clock)
            section.status = "cut short" if clock.over() else "done"
        except SkippedError as skipped:
            section.status, section.reason = "skipped", str(skipped)
        except Exception as error:  # noqa: BLE001 - one broken section must not cost the others
            section.status, section.reason = "failed", f"{type(error).__name__}: {error}"
        section.seconds = time.monotonic() - begin
        self.write()
        print_section(section)

    def write(self) -> None:
        """Replace the file as a whole."""
        temporary = self.path.with_suffix(".tmp")
        content = {"machine": self.machine, "sections": [vars(section) for section in self.sections]}
        temporary.write_text(json.dumps(content, indent=1))
        temporary.replace(self.path)

    def failures(self) -> list[str]:
        """Every row that says it is wrong, and every section that broke."""
        wrong = [
            f"{section.name}: {row}" for section in self.sections for row in section.rows if row.get("ok") is False
        ]
        return wrong + [f"{s.name}: {s.reason}" for s in self.sections if s.status == "failed"]


def print_section(section: Section) -> None:
    """As a table."""
    reason = f" ({section.reason})" if section.reason else ""
    print(f"\n== {section.name}: {section.status}{reason}, {section.seconds:.0f} s")
    if not section.rows:
        return
    columns = list(dict.fromkeys(key for row in section.rows for key in row))
    cells = [columns] + [[_cell(row.get(column)) for column in columns] for row in section.rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip(), flush=True)


def _cell(value: object) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
