"""Clients that ask the server in threads, hold every answer against the known one, and try again where asked to."""

from __future__ import annotations

import http.client
import itertools
import threading
import time
from collections import Counter
from collections.abc import Sequence

from soak_server import Question

__all__ = ["Clients", "exchange"]

_PATIENCE_S = 60.0
_RETRY_S = 0.05


def exchange(connection: http.client.HTTPConnection, content: bytes) -> tuple[int, bytes]:
    """Send a whole request and read its answer: status and body.

    Raises:
        OSError: the connection failed.
        http.client.HTTPException: what came is no answer.
    """
    if connection.sock is None:
        connection.connect()
    connection.sock.sendall(content)
    response = http.client.HTTPResponse(connection.sock, method="POST")
    response.begin()
    body = response.read()
    if response.will_close:
        connection.close()
    return response.status, body


class Clients:
    """``count`` threads that ask one question after another until :meth:`stop`.

    A request whose connection breaks or that is answered with 503 is sent again, as clients of a server that may
    restart do; it is lost if that has no end within a minute.
    """

    def __init__(self, port: int, questions: Sequence[Question], count: int) -> None:
        self.answers: Counter[str] = Counter()  # right, wrong, lost, retried, and statuses other than 200 and 503
        self._port, self._questions = port, questions
        self._lock, self._end = threading.Lock(), threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(number,), daemon=True) for number in range(count)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Let every client finish its request."""
        self._end.set()
        for thread in self._threads:
            thread.join(2 * _PATIENCE_S)
            if thread.is_alive():
                self._count("lost")

    def wait_for(self, right: int, deadline: float) -> None:
        """Until ``right`` more answers have come, or the deadline."""
        target = self.answers["right"] + right
        while self.answers["right"] < target and time.monotonic() < deadline:
            time.sleep(0.01)

    def _ask(self, number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_PATIENCE_S)
        for question in itertools.islice(itertools.cycle(self._questions), number * 7, None):
            if self._end.is_set():
                break
            self._count(self._outcome(connection, question))
        connection.close()

    def _outcome(self, connection: http.client.HTTPConnection, question: Question) -> str:
        deadline = time.monotonic() + _PATIENCE_S
        while time.monotonic() < deadline:
            try:
                status, body = exchange(connection, question.call.content)
            except (OSError, http.client.HTTPException):
                connection.close()
                status = 503
            if status != 503:
                if status != 200:
                    return str(status)
                return "right" if question.is_answered_by(body) else "wrong"
            self._count("retried")
            time.sleep(_RETRY_S)
        return "lost"

    def _count(self, outcome: str) -> None:
        with self._lock:
            self.answers[outcome] += 1
