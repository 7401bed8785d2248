"""Reloads and kills while clients ask: no answer may be lost or wrong."""

from __future__ import annotations

import shutil
import time
from typing import Any

from server_process import free_port
from soak_client import Clients
from soak_server import Soak, start

__all__ = ["kills", "reloads"]

_CLIENTS = 8
# Answers between two faults, so that each falls among requests.
_BETWEEN = 40


def reloads(soak: Soak, count: int, deadline: float, _: dict[str, Any]) -> dict[str, Any]:
    """Replace the model's file ``count`` times by another with the same answers; every one must be loaded."""
    server = start(soak, "--watch-interval", "0.05")
    clients = Clients(server.port, soak.questions, _CLIENTS)
    done = 0
    try:
        while done < count and time.monotonic() < deadline:
            clients.wait_for(_BETWEEN, deadline)
            beside = soak.folder / "next.onnx"
            shutil.copyfile(soak.model, beside)
            beside.replace(soak.model)
            _wait_for_loads(soak, done + 1, deadline)
            done = _loads(soak)
        clients.wait_for(_BETWEEN, deadline)
        clients.stop()
    finally:
        server.kill()
    return _verdict(clients, done, count, "reloads")


def kills(soak: Soak, count: int, deadline: float, _: dict[str, Any]) -> dict[str, Any]:
    """SIGKILL the server ``count`` times and start it again on the same port."""
    port = free_port()
    server = start(soak, port=port)
    clients = Clients(port, soak.questions, _CLIENTS)
    done = 0
    try:
        while done < count and time.monotonic() < deadline:
            clients.wait_for(_BETWEEN, deadline)
            server.kill()
            server = start(soak, port=port)
            done += 1
        clients.wait_for(_BETWEEN, deadline)
        clients.stop()
    finally:
        server.kill()
    return _verdict(clients, done, count, "kills")


def _verdict(clients: Clients, done: int, count: int, name: str) -> dict[str, Any]:
    answers = dict(clients.answers)
    good = done >= count and set(answers) <= {"right", "retried"} and answers.get("right", 0) > count * _BETWEEN
    return {"good": good, name: done, "asked_for": count, "clients": _CLIENTS, "answers": answers}


def _loads(soak: Soak) -> int:
    return (soak.folder / "server.log").read_bytes().count(b'"message":"model loaded"')


def _wait_for_loads(soak: Soak, loads: int, deadline: float) -> None:
    while _loads(soak) < loads and time.monotonic() < deadline:
        time.sleep(0.02)
