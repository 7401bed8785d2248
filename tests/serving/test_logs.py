"""Log lines: one each, whatever is in them, and not too many of a kind."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import re
import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.logs import JsonFormatter, LineHandler, RateLimit

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


def test_a_long_traceback_is_cut_to_what_a_pipe_takes_in_one_piece() -> None:
    def recurse(depth: int) -> None:
        recurse_again(depth - 1) if depth else json.loads("x\u00e4\n" * 1000)

    def recurse_again(depth: int) -> None:  # two in turn: Python itself sums up what repeats line by line
        recurse(depth)

    logger, stream = logging.Logger("serving"), io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    logger.addHandler(handler)
    try:
        recurse(200)
    except json.JSONDecodeError:
        logger.exception("failed", extra={"fields": {"request_id": "7"}})
    (line,) = stream.getvalue().splitlines()
    assert len(line) < 4096
    found = json.loads(line)
    assert found["request_id"] == "7"
    assert found["traceback"].startswith("Traceback (most recent call last):\n")
    assert found["traceback"].endswith("JSONDecodeError: Expecting value: line 1 column 1 (char 0)")


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


class Stream(io.StringIO):
    """A stream that says what was written at once, and can be full."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[str] = []
        self.full = False

    def write(self, text: str) -> int:
        if self.full:
            raise OSError(28, "No space left on device")
        self.writes.append(text)
        return super().write(text)


def messages(stream: Stream) -> list[str]:
    return [json.loads(line)["message"] for line in stream.getvalue().splitlines()]


def eventually(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture
def lines() -> tuple[LineHandler, Stream]:
    stream = Stream()
    handler = LineHandler(stream)
    handler.setFormatter(JsonFormatter())
    return handler, stream


def test_lines_are_written_together_and_in_order_without_being_asked(lines: tuple[LineHandler, Stream]) -> None:
    handler, stream = lines
    for number in range(100):
        handler.handle(record(str(number)))
    eventually(lambda: len(messages(stream)) == 100)
    assert messages(stream) == [str(number) for number in range(100)]
    assert len(stream.writes) < 10
    handler.handle(record("later"))  # the thread that writes is still there
    eventually(lambda: messages(stream)[-1] == "later")


def test_lines_stay_whole_where_several_processes_write_to_one_pipe(lines: tuple[LineHandler, Stream]) -> None:
    handler, stream = lines
    sizes = [10, 3000, 900, 5000, 20, 4090, 30]
    with handler.lock or contextlib.nullcontext():  # so that all of them wait together
        for number, size in enumerate(sizes):
            handler.emit(record(str(number), text="x" * size))
    eventually(lambda: len(messages(stream)) == len(sizes))
    assert messages(stream) == [str(number) for number in range(len(sizes))]
    assert all(text.endswith("\n") for text in stream.writes)
    assert all(len(text) <= 4096 for text in stream.writes if text.count("\n") > 1)


def test_a_warning_is_written_at_once_behind_what_was_before(lines: tuple[LineHandler, Stream]) -> None:
    handler, stream = lines
    handler.handle(record("info"))
    handler.handle(record("warning", logging.WARNING))
    assert messages(stream) == ["info", "warning"]


def test_a_full_disk_ends_neither_the_logging_nor_what_logs(
    lines: tuple[LineHandler, Stream], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    handler, stream = lines
    stream.full = True
    handler.handle(record("lost"))
    handler.handle(record("lost", logging.ERROR))
    time.sleep(0.1)
    stream.full = False
    handler.handle(record("found"))
    eventually(lambda: messages(stream) == ["found"])
