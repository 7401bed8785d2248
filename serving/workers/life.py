"""One worker process as its parent sees it: started, ready, ended."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import socket
from collections.abc import Awaitable, Callable
from multiprocessing import resource_tracker

from cbn_deploy.errors import SettingsError
from serving.settings import ServingSettings
from serving.workers.channel import Channel, Message
from serving.workers.handover import ConnectionSender
from serving.workers.start import WorkerStart, run

__all__ = ["WorkerLife"]

# What a process that has ended has still said is read within this.
_LAST_WORDS_SECONDS = 5.0

_SIGNALS = {signal.SIGINT, signal.SIGTERM}
# A fork would copy locks that other threads hold.
_SPAWN = multiprocessing.get_context("spawn")


class WorkerLife:
    """A worker from start to end.

    Args:
        number: of the worker.
        restarts: how often a worker of this number has been replaced.
        settings: those of the server.
        unloaded: models that it leaves out.
        end_seconds: the most that it may live once this process is gone.
        answer: called with what it asks of all workers.

    Attributes:
        number: of the worker.
        unloaded: models that it left out.
        sender: where its connections go.
        channel: where it is asked.
        models: the names of its models, once it is ready; a :class:`SettingsError` if it ends before.
        stopping: it takes no more connections.
        ended: it is no more.
        exit_code: as :mod:`multiprocessing` has it, once it has ended.
    """

    def __init__(
        self,
        number: int,
        restarts: int,
        settings: ServingSettings,
        unloaded: frozenset[str],
        *,
        end_seconds: float,
        answer: Callable[[int, Message], Awaitable[Message]],
    ) -> None:
        self.number, self.unloaded = number, unloaded
        self._answer = answer
        self._control, control = socket.socketpair()
        connections, theirs = socket.socketpair()
        start = WorkerStart(
            number=number,
            restarts=restarts,
            settings=settings,
            unloaded=unloaded,
            end_seconds=end_seconds,
            control=control,
            connections=theirs,
        )
        self._process = _SPAWN.Process(target=run, args=(start,), name=f"worker {number}", daemon=True)
        resource_tracker.ensure_running()  # else it is started below, and unblocks the signals
        # The worker unblocks them when it knows what to do with them.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            control.close()
            theirs.close()
        self.sender = ConnectionSender(connections)
        self.channel: Channel
        self.models: asyncio.Future[list[str]] = asyncio.get_running_loop().create_future()
        self.stopping = asyncio.Event()
        self.ended = asyncio.Event()
        self.exit_code: int | None = None
        self._reason = ""

    @property
    def pid(self) -> int | None:
        """The process id."""
        return self._process.pid

    async def live(self) -> None:
        """Listen to the worker until it ends."""
        self.channel = await Channel.over(self._control, self._hear)
        await _readable(self._process.sentinel)
        await asyncio.wait([asyncio.ensure_future(self.channel.ended())], timeout=_LAST_WORDS_SECONDS)
        self._process.join()
        self.exit_code = self._process.exitcode
        if not self.models.done():
            self.models.set_exception(SettingsError(self._reason or self._unexplained()))
        self.stopping.set()
        self.ended.set()
        self.channel.close()
        self.sender.close()
        self._process.close()

    def send_signal(self, number: int) -> None:
        """Nothing happens if it has ended."""
        if not self.ended.is_set() and self._process.pid is not None and self._process.is_alive():
            os.kill(self._process.pid, number)

    async def _hear(self, message: Message) -> Message:
        match message["do"]:
            case "ready":
                if not self.models.done():
                    self.models.set_result(message["models"])
            case "failed":
                self._reason = message["reason"]
            case "stopping":
                self.stopping.set()
            case _:
                return await self._answer(self.number, message)
        return {}

    def _unexplained(self) -> str:
        return f"Worker {self.number} ended with {self.exit_code} before it was ready; see its log above."


async def _readable(descriptor: int) -> None:
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(descriptor, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(descriptor)
