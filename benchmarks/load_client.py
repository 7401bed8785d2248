"""An HTTP/1.1 client that costs little, for measuring a server with which it shares the processors.

One thread, one socket a connection, requests that were made beforehand: some 20 microseconds a request, where clients
of general use take a millisecond. :func:`closed_loop` keeps a number of requests under way and finds the most that a
server can do; :func:`open_loop` sends at given moments whatever has become of the requests before, and counts a
request's time from the moment at which it was due, so that a server that stands still is not excused.
"""

from __future__ import annotations

import random
import re
import select
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

__all__ = ["Call", "Load", "closed_loop", "http_request", "open_loop"]

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
# More than a request of the benchmark, so that sending one never waits for the server.
_SEND_BUFFER = 2**21
# A server that does not answer for so long has lost the request.
_PATIENCE_S = 30.0


@dataclass(frozen=True)
class Call:
    """A request as it goes over the wire, and text that the right answer to it contains."""

    content: bytes
    expected: bytes


@dataclass
class Load:
    """What came of a run.

    Attributes:
        latencies_s: of every request that was answered rightly.
        statuses: HTTP status -> answers.
        wrong: answers with status 200 and without the expected text.
        lost: requests without an answer.
        seconds: from the first request to the last answer.
        client_cpu_s: processor time of this client.
    """

    latencies_s: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    wrong: int = 0
    lost: int = 0
    seconds: float = 0.0
    client_cpu_s: float = 0.0

    @property
    def throughput(self) -> float:
        """Right answers a second."""
        return len(self.latencies_s) / self.seconds

    def percentile_ms(self, percent: float) -> float:
        """Of the latencies."""
        latencies: NDArray[np.float64] = np.asarray(self.latencies_s or [np.nan])
        return float(np.percentile(latencies, percent)) * 1000


def http_request(path: str, body: bytes, content_type: str) -> bytes:
    """A POST on a connection that is kept open."""
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}"
    return f"{head}\r\n\r\n".encode() + body


def closed_loop(port: int, calls: Sequence[Call], connections: int, seconds: float) -> Load:
    """Keep ``connections`` requests under way for ``seconds``; each connection asks again when it has its answer."""
    endless = _endless(calls)
    with _Loop(port, connections) as loop:
        for connection in loop.connections:
            connection.send(next(endless), time.perf_counter())
        end = loop.started + seconds
        for connection in loop.answers(lambda: _PATIENCE_S):
            if time.perf_counter() < end:
                connection.send(next(endless), time.perf_counter())
    return loop.load


def open_loop(
    port: int, calls: Sequence[Call], rate: float, seconds: float, *, connections: int = 64, poisson: bool = False
) -> Load:
    """Send ``rate`` requests a second for ``seconds``, evenly or (``poisson``) as independent clients would."""
    source = random.Random(0)
    endless = _endless(calls)
    with _Loop(port, connections) as loop:
        free = deque(loop.connections)
        due = loop.started
        end = loop.started + seconds

        def send_what_is_due() -> float:
            """Seconds until the next one."""
            nonlocal due
            while free and due < end and due <= time.perf_counter():
                free.popleft().send(next(endless), due)
                due += source.expovariate(rate) if poisson else 1.0 / rate
            if due >= end or not free:
                return _PATIENCE_S
            return max(due - time.perf_counter(), 0.0)

        for connection in loop.answers(send_what_is_due, lambda: due < end):
            free.append(connection)
    return loop.load


def _endless(calls: Sequence[Call]) -> Iterator[Call]:
    while True:
        yield from calls


class _Connection:
    """One socket; at most one request under way."""

    def __init__(self, port: int) -> None:
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.settimeout(_PATIENCE_S)
        self.socket.connect(("127.0.0.1", port))
        self.call: Call | None = None
        self.due = 0.0
        self._received = b""

    def fileno(self) -> int:
        return self.socket.fileno()

    def send(self, call: Call, due: float) -> None:
        self.call, self.due, self._received = call, due, b""
        self.socket.sendall(call.content)

    def receive(self) -> bytes | None:
        """The whole answer, once it is there; empty: the server has closed the connection."""
        received = self.socket.recv(2**18)
        if not received:
            return b""
        self._received += received
        head_end = self._received.find(b"\r\n\r\n")
        if head_end < 0:
            return None
        length = _LENGTH.search(self._received, 0, head_end)
        if length is None:
            raise ValueError(f"an answer without a length: {self._received[:200]!r}")
        return self._received if len(self._received) >= head_end + 4 + int(length[1]) else None


class _Loop:
    """The connections, and what has come of the requests so far."""

    def __init__(self, port: int, connections: int) -> None:
        self.connections = [_Connection(port) for _ in range(connections)]
        self.load = Load()
        self._cpu = time.process_time()
        self.started = time.perf_counter()

    def __enter__(self) -> _Loop:
        return self

    def __exit__(self, *_: object) -> None:
        self.load.lost += sum(connection.call is not None for connection in self.connections)
        self.load.seconds = time.perf_counter() - self.started
        self.load.client_cpu_s = time.process_time() - self._cpu
        for connection in self.connections:
            connection.socket.close()

    def answers(self, wait: Callable[[], float], more: Callable[[], bool] = lambda: False) -> Iterator[_Connection]:
        """Connections whose answer has come, until no request is under way and there is no ``more`` to send.

        ``wait`` is called before every look at the sockets and says how many seconds it may take.
        """
        while True:
            seconds = wait()
            waiting = [connection for connection in self.connections if connection.call is not None]
            if not waiting and not more():
                return
            ready = select.select(waiting, (), (), seconds)[0]
            if not ready and seconds == _PATIENCE_S:
                return
            for connection in ready:
                answer = connection.receive()
                if answer is not None:
                    self._note(connection, answer)
                    if answer:
                        yield connection

    def _note(self, connection: _Connection, answer: bytes) -> None:
        call, connection.call = connection.call, None
        if not answer or call is None:
            self.load.lost += 1
            return
        status = int(answer[9:12])
        self.load.statuses[status] += 1
        if status == 200 and call.expected in answer:
            self.load.latencies_s.append(time.perf_counter() - connection.due)
        else:
            self.load.wrong += status == 200
