"""Log lines: one each, whatever is in them, and not too many of a kind."""

from __future__ import annotations

import json
import logging
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.logs import JsonFormatter, RateLimit

PRINTABLE = re.compile(r"[ -~]*")


def record(message: str, level: int = logging.INFO, line: int = 1, **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("serving", level, "module.py", line, message, (), None)
    made.fields = fields
    return made


@given(st.text(st.characters(), max_size=40), st.text(st.characters(), max_size=40))
def test_whatever_is_logged_is_one_line_of_printable_ascii_and_can_be_read_back(message: str, path: str) -> None:
    line = JsonFormatter().format(record(message.replace("%", ""), path=path))
    assert PRINTABLE.fullmatch(line)
    assert json.loads(line)["path"] == path


@pytest.mark.parametrize("text", ["\n", "\r\n", "\u2028", "\x85", "\x1b[2J", "\x9b2J", "\x7f", '"}', "\ud800", "\x00"])
def test_line_ends_and_control_characters_of_all_kinds_are_escaped(text: str) -> None:
    line = JsonFormatter().format(record("request", path=f"/a{text}b"))
    assert PRINTABLE.fullmatch(line)
    assert json.loads(line)["path"] == f"/a{text}b"


def test_a_traceback_is_one_line_too() -> None:
    try:
        raise ValueError("line one\nline two")
    except ValueError as error:
        failed = logging.LogRecord(
            "serving", logging.ERROR, "m.py", 1, "failed", (), (ValueError, error, error.__traceback__)
        )
    line = JsonFormatter().format(failed)
    assert PRINTABLE.fullmatch(line)
    assert "line two" in json.loads(line)["traceback"]


def test_errors_of_one_line_of_code_are_bounded_and_counted() -> None:
    now = [0.0]
    limit = RateLimit(lambda: now[0])
    passed = [limit.filter(record(f"error {i}", logging.ERROR)) for i in range(1000)]
    assert sum(passed) == 10
    assert passed[:10] == [True] * 10
    assert limit.filter(record("another", logging.WARNING, line=2)), "one line's flood does not silence another"
    assert all(limit.filter(record("request")) for _ in range(1000)), "access lines are not errors"
    assert limit.suppressed == 990
    now[0] = 10.0
    after = record("error", logging.ERROR, model="birds")
    assert limit.filter(after)
    assert after.fields == {"model": "birds", "suppressed": 990}
    later = record("error", logging.ERROR)
    assert limit.filter(later)
    assert later.fields == {}
