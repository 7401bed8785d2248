"""Memory, files and threads of the server over a long time of mixed requests."""

from __future__ import annotations

import http.client
import itertools
import random
import socket
import threading
import time
from collections import Counter
from typing import Any

from load_client import http_request
from server_process import ServerProcess
from soak_client import exchange
from soak_server import Question, Soak, start

__all__ = ["memory"]

_EARLY = 2_000
_LIMIT = 1.05
_CLIENTS = 4
# A hundred requests: right ones, wrong ones, and clients that go away.
_ERRORS, _LEAVERS = 8, 2
_BAD = (
    (http_request("/v1/classify", b"no image", "image/png"), 415),
    (http_request("/v1/classify", b"", "image/png"), 422),
    (http_request("/v1/classify?top_k=0", b"x", "image/png"), 422),
    (http_request("/v1/classify", b"x", "text/plain"), 415),
    (http_request("/v2/models/soak/infer", b"{", "application/json"), 400),
    (http_request("/v2/models/none/infer", b"{}", "application/json"), 404),
    (http_request("/nowhere", b"", "image/png"), 404),
)


def memory(soak: Soak, count: int, deadline: float, _: dict[str, Any]) -> dict[str, Any]:
    """``count`` requests; resident memory at their end is compared with that after the first 2,000."""
    early = min(_EARLY, max(count // 10, 1))
    server = start(soak)
    try:
        traffic = _Traffic(server.port, soak.questions)
        samples = []
        for target in [early, *range(early + (count - early) // 20, count + 1, max((count - early) // 20, 1))]:
            traffic.run_until(target, deadline)
            samples.append({"requests": traffic.done, **_state(server)})
            if time.monotonic() > deadline:
                break
    finally:
        server.kill()
    first, last = samples[0], samples[-1]
    growth = last["resident_bytes"] / first["resident_bytes"]
    flat = last["open_files"] <= first["open_files"] + 2 and last["threads"] <= first["threads"] + 1
    answers = dict(traffic.answers)
    return {
        "good": bool(growth <= _LIMIT and flat and traffic.done >= count * 0.999 and not traffic.answers["unexpected"]),
        "requests": traffic.done,
        "asked_for": count,
        "memory_after": early,
        "memory_ratio": growth,
        "answers": answers,
        "samples": samples,
    }


class _Traffic:
    """Clients that share a number of requests to make."""

    def __init__(self, port: int, questions: list[Question]) -> None:
        self.answers: Counter[str] = Counter()
        self.done = 0
        self._port, self._questions = port, questions
        self._lock = threading.Lock()

    def run_until(self, target: int, deadline: float) -> None:
        """Until ``target`` requests have been made in all, or the deadline."""
        share = (target - self.done) // _CLIENTS + 1
        threads = [
            threading.Thread(target=self._ask, args=(share, self.done + seed, deadline)) for seed in range(_CLIENTS)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _ask(self, count: int, seed: int, deadline: float) -> None:
        source = random.Random(seed)
        outcomes: Counter[str] = Counter()
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        for question in itertools.islice(itertools.cycle(self._questions), seed % 91, seed % 91 + count):
            outcomes[self._one(connection, question, source)] += 1
            if time.monotonic() > deadline:
                break
        connection.close()
        with self._lock:
            self.answers += outcomes
            self.done += outcomes.total()

    def _one(self, connection: http.client.HTTPConnection, question: Question, source: random.Random) -> str:
        kind = source.randrange(100)
        if kind < _LEAVERS:
            content = question.call.content
            with socket.create_connection(("127.0.0.1", self._port), timeout=60) as leaver:
                leaver.sendall(content[: source.randrange(1, len(content) + 1)])
            return "left"
        content, expected = (question.call.content, 200) if kind >= _LEAVERS + _ERRORS else source.choice(_BAD)
        try:
            status, body = exchange(connection, content)
        except (OSError, http.client.HTTPException):  # the server closes a connection after some errors
            connection.close()
            return "unexpected" if expected == 200 else "closed"
        if status != expected or (status == 200 and not question.is_answered_by(body)):
            return "unexpected"
        return "right" if status == 200 else "error as expected"


def _state(server: ServerProcess) -> dict[str, int]:
    time.sleep(0.5)  # the last requests' ends
    return {
        "resident_bytes": server.resident_bytes(),
        "open_files": server.open_files(),
        "threads": server.threads(),
    }
