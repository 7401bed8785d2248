"""The end of a server: readiness says no at once, and what has begun is finished."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import time
from types import FrameType

import uvicorn

from serving.protocol import BoundedHeadProtocol

__all__ = ["Drain", "DrainingServer"]

log = logging.getLogger("serving")


class Drain:
    """Whether the server is on its way out; set once, from a signal handler, read on the event loop."""

    def __init__(self) -> None:
        self.begun = False


class DrainingServer(uvicorn.Server):
    """uvicorn, told to leave ``delay`` seconds between a signal and the end of listening.

    During the delay requests are answered as before, but each answer closes its connection, and readiness is 503, so
    that load balancers send nothing more. Then uvicorn stops listening, closes idle connections and waits for the
    requests in progress. A second signal ends the delay.

    A TLS handshake has as long as the head of a request, which uvicorn cannot be told; asyncio's minute is too long.
    """

    def __init__(self, config: uvicorn.Config, drain: Drain, delay: float) -> None:
        super().__init__(config)
        self._drain, self._delay = drain, delay

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer on ``sockets``, which already listen."""
        await super().startup(sockets=[])
        for listener in sockets or []:
            server = await asyncio.get_running_loop().create_server(
                self._connection,
                sock=listener,
                ssl=self.config.ssl,
                ssl_handshake_timeout=self.handshake_seconds,
                backlog=self.config.backlog,
            )
            self.servers.append(server)

    @property
    def handshake_seconds(self) -> float | None:
        """What a TLS handshake may take; ``None``: there is none."""
        protocol = self.config.http_protocol_class
        if self.config.ssl is None or not issubclass(protocol, BoundedHeadProtocol):
            return None
        return protocol.head_seconds

    def _connection(self) -> asyncio.Protocol:
        protocol: asyncio.Protocol = self.config.http_protocol_class(  # type: ignore[call-arg]  # as uvicorn's own
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return protocol

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGTERM or SIGINT arrived."""
        first, self._drain.begun = not self._drain.begun, True
        if first and self._delay > 0:
            self._captured_signals.append(sig)
            # A handler may interrupt a write to the log, and must not write to it itself.
            threading.Thread(target=self._stop_later, name="drain", daemon=True).start()
        else:
            super().handle_exit(sig, frame)

    def _stop_later(self) -> None:
        log.info("draining", extra={"fields": {"seconds": self._delay}})
        time.sleep(self._delay)
        self.should_exit = True
