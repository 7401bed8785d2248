"""Connections on their way from the process that accepts them to the one that answers: file descriptors over a socket.

Why not let the workers accept from one shared socket: whoever wakes first takes all that wait, so connections that are
kept alive end up unevenly for as long as they live. Why not one ``SO_REUSEPORT`` socket a worker: connections are dealt
by a hash, also to a worker that is dead or still loading, and those wait until there is another. Handing over costs a
connection, not a request, one more pass through a process; it gives each to the worker that has the fewest, and leaves
what nobody has taken yet in the one queue of the listening socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable

__all__ = ["ConnectionReceiver", "ConnectionSender"]

# So that neither end starves the rest of its event loop.
_AT_ONCE = 64


class ConnectionSender:
    """The parent's end of the socket to one worker.

    Attributes:
        open: connections that the worker has, as far as it has told.
    """

    def __init__(self, pipe: socket.socket) -> None:
        pipe.setblocking(False)
        self._pipe = pipe
        self.open = 0
        asyncio.get_running_loop().add_reader(pipe, self._count_closed)

    def send(self, connection: socket.socket) -> bool:
        """Give ``connection`` away, of which the caller closes its own copy; ``False``: the worker cannot take it."""
        try:
            socket.send_fds(self._pipe, [b"+"], [connection.fileno()])
        except OSError:  # its queue is full, or it is gone
            return False
        self.open += 1
        return True

    def close(self) -> None:
        """Nothing more will be sent."""
        asyncio.get_running_loop().remove_reader(self._pipe)
        self._pipe.close()

    def _count_closed(self) -> None:
        try:
            closed = len(self._pipe.recv(4096))
        except BlockingIOError:
            return
        except OSError:
            closed = 0
        if not closed:
            asyncio.get_running_loop().remove_reader(self._pipe)
        self.open = max(0, self.open - closed)


class ConnectionReceiver:
    """A worker's end.

    Args:
        pipe: the socket to the parent.
        take: called with every connection that arrives.
    """

    def __init__(self, pipe: socket.socket, take: Callable[[socket.socket], None]) -> None:
        pipe.setblocking(False)
        self._pipe, self._take = pipe, take
        self._untold = 0

    def start(self) -> None:
        """Take what arrives."""
        asyncio.get_running_loop().add_reader(self._pipe, self._receive)

    def stop(self) -> None:
        """Let the parent send no more, and take what it has sent."""
        self._pipe.shutdown(socket.SHUT_RD)
        while self._receive():
            pass
        asyncio.get_running_loop().remove_reader(self._pipe)

    def closed(self) -> None:
        """One of the connections is no more."""
        self._untold += 1
        with contextlib.suppress(OSError):  # the parent is slow, and is told with the next one; or gone
            self._untold -= self._pipe.send(b"-" * self._untold)

    def _receive(self) -> bool:
        """Whether there may be more."""
        for _ in range(_AT_ONCE):
            try:
                sent, descriptors, _, _ = socket.recv_fds(self._pipe, 1, 1)
            except BlockingIOError:
                return False
            except OSError:
                sent = b""
            if not sent:
                asyncio.get_running_loop().remove_reader(self._pipe)
                return False
            if not descriptors:  # this process may open no more files: the connection is lost
                self.closed()
            for descriptor in descriptors:
                self._take(socket.socket(fileno=descriptor))
        return True
