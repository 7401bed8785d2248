"""SIGTERM before a server can drain."""

from __future__ import annotations

import signal

__all__ = ["exit_on_sigterm"]


def exit_on_sigterm() -> None:
    """SIGTERM while loading ends the process; while serving, uvicorn drains first and raises it again afterwards."""
    signal.signal(signal.SIGTERM, _exit_cleanly)


def _exit_cleanly(*_: object) -> None:
    raise SystemExit(0)
