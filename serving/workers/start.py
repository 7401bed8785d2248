"""What a worker is started with. Imports nothing of the server: the parent needs this, too."""

from __future__ import annotations

import socket
from dataclasses import dataclass

from serving.settings import ServingSettings

__all__ = ["WorkerStart", "run"]


@dataclass(frozen=True, kw_only=True)
class WorkerStart:
    """What a worker is started with.

    Attributes:
        number: 0 ... workers - 1; a replacement has the number of what it replaces.
        restarts: how often that has happened.
        settings: those of the server.
        unloaded: models that clients have unloaded.
        end_seconds: the most that it may live once its parent is gone.
        control: questions and answers.
        connections: where connections come from.
    """

    number: int
    restarts: int
    settings: ServingSettings
    unloaded: frozenset[str]
    end_seconds: float
    control: socket.socket
    connections: socket.socket


def run(start: WorkerStart) -> None:
    """The whole life of a worker, in its own process."""
    from serving.daemon_threads import ending_the_process
    from serving.workers.worker import run_worker

    with ending_the_process():
        run_worker(start)
