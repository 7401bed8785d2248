"""Logs as JSON, one object a line, on stderr."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timezone
from typing import Any, TextIO

import orjson

__all__ = ["JsonFormatter", "LineHandler", "RateLimit", "configure_logging", "suppressed_records"]

# Warnings and errors from one line of code, in one window.
_RECORDS = 10
_WINDOW_SECONDS = 10.0

_TOGETHER_SECONDS = 0.05
_ATOMIC_BYTES = 4096
_LEAST_TRACEBACK = 256

_encode = json.JSONEncoder(default=str).encode


class JsonFormatter(logging.Formatter):
    """time, level, logger, message, then whatever the record carries in ``fields`` (``extra={"fields": {...}}``)."""

    def format(self, record: logging.LogRecord) -> str:
        """One line of printable ASCII: whatever could end a line or steer a terminal is escaped, so that no client can
        forge a line."""
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        line = _line(entry)
        if record.exc_info:
            line = _with_traceback(entry, self.formatException(record.exc_info), _ATOMIC_BYTES - len(line))
        return line


def _with_traceback(entry: dict[str, Any], text: str, room: int) -> str:
    """``entry`` with as much of the traceback as there is ``room`` for: the error at its end, and how it began."""
    kept = max(room, _LEAST_TRACEBACK)
    while True:
        cut = text if len(text) <= kept else f"{text[: kept // 4]}\n[...]\n{text[-(kept - kept // 4) :]}"
        line = _line({**entry, "traceback": cut})
        if len(line) < _ATOMIC_BYTES or kept <= _LEAST_TRACEBACK:
            return line
        kept = max(kept * 9 // 10, _LEAST_TRACEBACK)  # what is escaped takes more characters


def _line(entry: dict[str, Any]) -> str:
    return _ascii(entry).replace("\x7f", "\\u007f")  # JSON leaves DEL as it is


def _ascii(entry: dict[str, Any]) -> str:
    """JSON in ASCII: Unicode has line ends and control characters of its own."""
    try:
        text = orjson.dumps(entry, default=str)  # twenty times as fast, and most lines are ASCII as they are
    except orjson.JSONEncodeError:  # half a surrogate pair
        return _encode(entry)
    return text.decode() if text.isascii() else _encode(entry)


class RateLimit(logging.Filter):
    """Lets ten warnings or errors from one line of code pass in ten seconds, and says with the next how many did not.

    A client that can provoke an error can do so thousands of times a second. There are as many counts as lines of code
    that log, so clients cannot grow them either. Records below WARNING all pass.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._lock = threading.Lock()
        self._windows: dict[tuple[str, int], _Window] = {}
        self.suppressed = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether ``record`` is logged."""
        if record.levelno < logging.WARNING:
            return True
        now = self._clock()
        with self._lock:
            window = self._windows.setdefault((record.pathname, record.lineno), _Window(now))
            if now - window.start >= _WINDOW_SECONDS:
                if window.suppressed:
                    record.fields = {**getattr(record, "fields", {}), "suppressed": window.suppressed}
                window.start, window.passed, window.suppressed = now, 0, 0
            if window.passed >= _RECORDS:
                window.suppressed += 1
                self.suppressed += 1
                return False
            window.passed += 1
            return True


class _Window:
    def __init__(self, start: float) -> None:
        self.start, self.passed, self.suppressed = start, 0, 0


class LineHandler(logging.Handler):
    """Writes lines to a stream; those below WARNING together, at most 50 ms after they were logged.

    A write of its own for every request would make the event loop give up the interpreter's lock once a request, and
    wait for it behind the threads that decode. A process that is killed takes the last 50 ms with it.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__()
        self._stream = stream or sys.stderr
        self._lines: list[str] = []
        self._waiting = threading.Event()
        threading.Thread(target=self._write_later, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the line of ``record``, or write it with those kept."""
        try:
            self._lines.append(self.format(record) + "\n")
            if record.levelno >= logging.WARNING:
                self.flush()
            elif not self._waiting.is_set():
                self._waiting.set()
        except Exception:  # noqa: BLE001 - as every handler of the standard library: logging must not end what logs
            self.handleError(record)

    def flush(self) -> None:
        """Write what is kept."""
        with self.lock or contextlib.nullcontext():
            self._waiting.clear()
            lines, self._lines = self._lines, []
            for text in _together(lines):
                self._stream.write(text)
                self._stream.flush()

    def _write_later(self) -> None:
        while self._waiting.wait():
            time.sleep(_TOGETHER_SECONDS)
            with contextlib.suppress(OSError, ValueError):  # a closed stream or a full disk: the next line may do
                self.flush()


def _together(lines: Sequence[str]) -> Iterator[str]:
    """The lines in texts of at most 4096 characters, which are ASCII: a pipe takes that many bytes in one piece, also
    where several workers write to it. A longer line is a text of its own."""
    text = ""
    for line in lines:
        if text and len(text) + len(line) > _ATOMIC_BYTES:
            yield text
            text = ""
        text += line
    if text:
        yield text


def configure_logging() -> None:
    """Send everything from level INFO, uvicorn's messages and Python's warnings included, to stderr as JSON."""
    handler = LineHandler()
    handler.setFormatter(JsonFormatter())
    handler.addFilter(RateLimit())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.INFO)
    logging.captureWarnings(True)


def suppressed_records() -> int:
    """Warnings and errors that were not logged, since :func:`configure_logging`."""
    filters = (found for handler in logging.getLogger().handlers for found in handler.filters)
    return sum(found.suppressed for found in filters if isinstance(found, RateLimit))
