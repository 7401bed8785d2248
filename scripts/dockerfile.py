"""Read a Dockerfile: enough of its language for ours, and an error for the rest. Standard library only."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Instruction", "Stage", "parse"]

KNOWN = ("FROM", "ARG", "RUN", "COPY", "WORKDIR", "ENV", "EXPOSE", "USER", "HEALTHCHECK", "ENTRYPOINT", "CMD")


@dataclass(frozen=True)
class Instruction:
    """One instruction: its ``name``, the ``text`` after it with continued lines joined, and where it begins."""

    name: str
    text: str
    line: int

    def exec_form(self) -> list[str]:
        """The JSON array of an instruction that has one, after any options (``--interval=10s``, ``CMD``)."""
        start = self.text.find("[")
        return [] if start < 0 else [str(part) for part in json.loads(self.text[start:])]


@dataclass
class Stage:
    """``FROM base AS name`` and what follows."""

    name: str
    base: str
    instructions: list[Instruction] = field(default_factory=list)

    def last(self, name: str) -> Instruction | None:
        """The instruction of that name that counts."""
        return next((i for i in reversed(self.instructions) if i.name == name), None)

    def sources(self) -> set[str]:
        """Stages that it copies from."""
        return {match for i in self.instructions for match in re.findall(r"--from=(\S+)", i.text)}


def parse(path: Path) -> dict[str, Stage]:
    """The stages by name, in order.

    Raises:
        ValueError: an instruction that is not among ours.
    """
    arguments: dict[str, str] = {}
    stages: dict[str, Stage] = {}
    for instruction in _instructions(path):
        if instruction.name not in KNOWN:
            raise ValueError(f"line {instruction.line}: {instruction.name} is not understood here")
        if instruction.name == "ARG" and not stages:
            name, _, value = instruction.text.partition("=")
            arguments[name] = value
        elif instruction.name == "FROM":
            base, _, name = _fill(instruction.text, arguments).partition(" AS ")
            stages[name or base] = Stage(name or base, base)
        else:
            list(stages.values())[-1].instructions.append(instruction)
    return stages


def environment(stage: Stage, inherited: dict[str, str]) -> dict[str, str]:
    """``inherited`` and what the stage's ENV instructions set."""
    result = dict(inherited)
    for instruction in stage.instructions:
        if instruction.name == "ENV":
            for pair in shlex.split(instruction.text):
                name, _, value = pair.partition("=")
                result[name] = _fill(value, result)
    return result


def _instructions(path: Path) -> list[Instruction]:
    result, pending, start = [], "", 0
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        start = start if pending else number
        pending += line.strip()
        if pending.endswith("\\"):
            pending = pending[:-1]
            continue
        name, _, text = pending.partition(" ")
        result.append(Instruction(name.upper(), text.strip(), start))
        pending = ""
    return result


def _fill(text: str, values: dict[str, str]) -> str:
    return re.sub(r"\$\{?(\w+)\}?", lambda match: values.get(match[1], ""), text)
