"""Accept connections and hand each to the worker that has the fewest."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Sequence

from serving.workers.handover import ConnectionSender

__all__ = ["Acceptor"]

_AT_ONCE = 64
# Until the workers, or this process's file descriptors, may have room again.
_PAUSE_SECONDS = 0.02

log = logging.getLogger("serving.workers")


class Acceptor:
    """Accepts from ``listener`` while ``takers`` gives somebody to hand connections to.

    What nobody can take stays in the listening socket's queue.
    """

    def __init__(self, listener: socket.socket, takers: Callable[[], Sequence[ConnectionSender]]) -> None:
        listener.setblocking(False)
        self._listener, self._takers = listener, takers
        self._turn = 0
        self._waiting: socket.socket | None = None
        self._pause: asyncio.TimerHandle | None = None
        self._closed = False

    def start(self) -> None:
        """Accept from now on."""
        self._pause = None
        if not self._closed:
            asyncio.get_running_loop().add_reader(self._listener, self._accept)

    def close(self) -> None:
        """Close the port."""
        if self._closed:
            return
        self._closed = True
        if self._pause is not None:
            self._pause.cancel()
        asyncio.get_running_loop().remove_reader(self._listener)
        self._listener.close()
        if self._waiting is not None:
            self._waiting.close()

    def _accept(self) -> None:
        for _ in range(_AT_ONCE):
            if self._waiting is None and not self._takers():
                self._rest()
                return
            try:
                connection = self._waiting or self._listener.accept()[0]
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:  # no file descriptors or no memory left
                log.error("cannot accept connections", extra={"fields": {"reason": error.strerror}})
                self._rest()
                return
            if not self._hand_over(connection):
                self._waiting = connection
                self._rest()
                return
            self._waiting = None
            connection.close()

    def _hand_over(self, connection: socket.socket) -> bool:
        takers = self._takers()
        self._turn += 1
        first = self._turn % max(1, len(takers))  # so that equals take turns
        fewest_first = sorted((*takers[first:], *takers[:first]), key=lambda taker: taker.open)
        return any(taker.send(connection) for taker in fewest_first)

    def _rest(self) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._listener)
        self._pause = loop.call_later(_PAUSE_SECONDS, self.start)
