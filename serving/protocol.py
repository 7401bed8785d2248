"""HTTP/1.1 on a connection, with bounds that uvicorn does not have: for the head of a request, and for connections."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import httptools
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serving.errors import error_response

__all__ = ["SPARE_CONNECTIONS", "BoundedHeadProtocol", "bounded_head_protocol"]

# Beyond the limit, to be told so; those beyond these are closed at once.
SPARE_CONNECTIONS = 32

log = logging.getLogger("serving")


def bounded_head_protocol(seconds: float, max_bytes: int, connections: int) -> type[BoundedHeadProtocol]:
    """:class:`BoundedHeadProtocol` with these bounds."""

    class Bounded(BoundedHeadProtocol):
        head_seconds, max_head_bytes, max_connections = seconds, max_bytes, connections

    return Bounded


class BoundedHeadProtocol(HttpToolsProtocol):
    """uvicorn's httptools protocol, made as strict as its h11 one, which is written in Python and slow.

    A connection that has not sent a whole request head within ``head_seconds`` is closed. The time runs from the
    connection's start and from the end of each response, so it also ends clients that go on sending a body after they
    were refused. A head of more than ``max_head_bytes``, or of HTTP/1.1 without exactly one Host, is answered with 400.
    So is a body with more than that in a chunk's extension or in the trailer; a trailer is read and dropped.
    An offer to upgrade to another protocol, as ``curl --http2`` makes it, is ignored; the parser alone would stop there
    and drop the body.

    A connection that makes more than ``max_connections`` gets a 503 for its request. uvicorn, which has a limit too,
    would give that to all while there are so many, and never close one that sends no whole head.

    A client that takes nothing of its answer for ``stalled_seconds`` is cut off: closing would wait for it to read, and
    keep the answer in memory as long. (Behind TLS it is the closing handshake that ends in time.)
    """

    head_seconds: float
    max_head_bytes: int
    max_connections: int
    stalled_seconds = 30.0
    url = b""  # uvicorn has none before a request line begins
    _deadline: asyncio.TimerHandle | None = None
    _look: asyncio.TimerHandle | None = None
    _bytes_without_content = 0
    _trailer_bytes = 0
    _in_head = True
    _is_spare = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        """A client has connected."""
        super().connection_made(transport)
        beyond = len(self.connections) - self.max_connections
        self._is_spare = beyond > 0
        if self._is_spare:
            log.warning("too many connections", extra={"fields": {"max_connections": self.max_connections}})
        if beyond > SPARE_CONNECTIONS:
            transport.abort()
        else:
            self._restart_deadline()

    def data_received(self, data: bytes) -> None:
        """Bytes have arrived. The parser reports a name or value only when it ends, so what arrives is counted.

        What is neither head nor content, a chunk's extension or a trailer, is counted too, or it could go on for ever.
        """
        self._bytes_without_content += len(data)
        self._unset_keepalive_if_required()
        rest = memoryview(data)
        try:
            while rest:
                rest = self._parse(rest)
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")
        else:
            if self._bytes_without_content > self.max_head_bytes:
                part = "The head of the request" if self._in_head else "The body's trailer, or a chunk's extension,"
                self.send_400_response(f"{part} has more than {self.max_head_bytes} bytes.")

    def send_400_response(self, msg: str) -> None:
        """Refuse what no application can be asked about, in the form of every other error, and close."""
        refusal = error_response({"path": self.url.decode("latin-1")}, 400, msg)
        head = [b"HTTP/1.1 400 Bad Request", *(name + b": " + value for name, value in refusal.raw_headers)]
        self.transport.write(b"\r\n".join([*head, b"connection: close", b"", bytes(refusal.body)]))
        self.transport.close()

    def on_header(self, name: bytes, value: bytes) -> None:
        """A field has ended. uvicorn would add one of the trailer to the head's, among them keys (RFC 9110, 6.5.1)."""
        if self._in_head:
            super().on_header(name, value)
            return
        self._trailer_bytes += len(name) + len(value)
        if self._trailer_bytes > self.max_head_bytes:
            raise _BadHeadError

    def on_headers_complete(self) -> None:
        """The head has ended; what is raised here becomes a 400."""
        if self.parser.should_upgrade():
            return
        self._in_head, self._bytes_without_content, self._trailer_bytes = False, 0, 0
        hosts = sum(name == b"host" for name, _ in self.headers)
        if hosts != 1 and self.parser.get_http_version() == "1.1":
            raise _BadHeadError
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > self.max_head_bytes:
            raise _BadHeadError
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Some of the content has arrived; how much there may be is the application's to say."""
        self._bytes_without_content = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request has ended, and what follows is the next one's head."""
        if self.parser.should_upgrade():
            return
        self._in_head, self._bytes_without_content = True, 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """The answer has been sent."""
        super().on_response_complete()
        self._restart_deadline()

    def pause_writing(self) -> None:
        """More waits to be sent than the client takes at once."""
        super().pause_writing()
        self._look_later(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        """The client has taken most of it."""
        self._stop_looking()
        if self.transport.is_closing():
            self._look_later(self.transport.get_write_buffer_size())
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is no more."""
        self._stop_deadline()
        self._stop_looking()
        super().connection_lost(exc)

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        answering: Any = _refuse if self._is_spare else app
        super()._start_asgi_task(cycle, answering)

    def _parse(self, data: memoryview) -> memoryview:
        """Parse ``data``; what is returned is left to parse: it follows a head that offered an upgrade."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            self._decline_upgrade()
            return data[offer.args[0] :]
        return data[:0]

    def _decline_upgrade(self) -> None:
        """Read the head again as if it had no Upgrade; what follows begins with the body."""
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        if method == b"CONNECT":
            raise httptools.HttpParserError("CONNECT")
        fields = [name + b": " + value for name, value in self.headers if name != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.feed_data(b"\r\n".join([method + b" " + self.url + b" HTTP/" + version, *fields, b"", b""]))

    def _restart_deadline(self) -> None:
        self._stop_deadline()
        self._deadline = self.loop.call_later(self.head_seconds, self._close_if_waiting)

    def _stop_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()

    def _close_if_waiting(self) -> None:
        cycle: Any = self.cycle  # None before the first request
        if cycle is None or cycle.response_complete:
            self.transport.close()
            if self._look is None:
                self._look_later(self.transport.get_write_buffer_size())

    def _look_later(self, unsent: int) -> None:
        """Look whether the client has taken any of the ``unsent`` bytes."""
        self._stop_looking()
        if unsent:
            self._look = self.loop.call_later(self.stalled_seconds, self._cut_off_if_stalled, unsent)

    def _stop_looking(self) -> None:
        if self._look is not None:
            self._look.cancel()
            self._look = None

    def _cut_off_if_stalled(self, unsent_before: int) -> None:
        """While writing is paused, or the connection closing, nothing is added to what is unsent."""
        self._look = None
        unsent = self.transport.get_write_buffer_size()
        if unsent >= unsent_before:
            self.transport.abort()
        else:
            self._look_later(unsent)


async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
    why = "The server has as many connections as it accepts; try again."
    response = error_response(scope, 503, why, {"Retry-After": "1", "Connection": "close"})
    await response(scope, receive, send)


class _BadHeadError(Exception):
    """The parser passes it on as an error of its own."""
