"""HTTP/1.1 on a connection, with a deadline for the headers, which uvicorn does not have."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["header_deadline_protocol"]


def header_deadline_protocol(seconds: float) -> type[H11Protocol]:
    """uvicorn's h11 protocol, closing a connection that has not sent a whole request head within ``seconds``.

    The time runs from the connection's start and from the end of each response, so it also ends clients that go on
    sending a body after they were refused. h11 is the implementation that bounds the size of a request head.
    """

    class HeaderDeadlineProtocol(H11Protocol):
        _deadline: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
            super().connection_made(transport)
            self._restart_deadline()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._restart_deadline()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_deadline()
            super().connection_lost(exc)

        def _restart_deadline(self) -> None:
            self._stop_deadline()
            self._deadline = self.loop.call_later(seconds, self._close_if_waiting)

        def _stop_deadline(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()

        def _close_if_waiting(self) -> None:
            cycle: Any = self.cycle  # None before the first request
            if cycle is None or cycle.response_complete:
                self.transport.close()

    return HeaderDeadlineProtocol
