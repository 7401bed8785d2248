"""Logs as JSON, one object a line, on stderr."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

import orjson

__all__ = ["JsonFormatter", "RateLimit", "configure_logging", "suppressed_records"]

# Warnings and errors from one line of code, in one window.
_RECORDS = 10
_WINDOW_SECONDS = 10.0

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
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
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


def configure_logging() -> None:
    """Send everything from level INFO, uvicorn's messages and Python's warnings included, to stderr as JSON."""
    handler = logging.StreamHandler()
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
