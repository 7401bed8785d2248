"""The parent of the workers: it starts them, hands connections to them, replaces those that end, and ends them all."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import time
from typing import Any

from cbn_deploy.errors import SettingsError
from serving.listener import announce, bind, listen
from serving.settings import ServingSettings
from serving.workers.acceptor import Acceptor
from serving.workers.channel import ChannelError, Message
from serving.workers.handover import ConnectionSender
from serving.workers.hub import Hub
from serving.workers.life import WorkerLife

__all__ = ["serve_with_workers"]

# Beyond the drain: for threads to end, and traces to be sent.
_END_MARGIN_SECONDS = 15.0
_FIRST_DELAY_SECONDS = 0.1
_LONGEST_DELAY_SECONDS = 30.0
# Whatever has served for this long did not fail at once.
_STEADY_SECONDS = 60.0
# A worker whose event loop does not turn for this long is stuck, and is replaced.
_PING_SECONDS = 10.0
_STUCK_SECONDS = 60.0

log = logging.getLogger("serving.workers")


def serve_with_workers(settings: ServingSettings) -> None:
    """Serve with ``settings.workers`` processes until a signal ends it.

    Raises:
        SettingsError: a worker could not start.
        KeyboardInterrupt: the signal was SIGINT; the workers have drained all the same.
    """
    if not hasattr(socket, "send_fds"):
        raise SettingsError("--workers above 1 needs connections to be handed over, which this system cannot do.")
    with bind(settings) as listener:
        if asyncio.run(Supervisor(settings, listener).run()) == signal.SIGINT:
            raise KeyboardInterrupt


class Supervisor:
    """The workers of ``listener``, which is bound, and opened when all of them are ready."""

    def __init__(self, settings: ServingSettings, listener: socket.socket) -> None:
        self._settings, self._listener = settings, listener
        self._end_seconds = settings.drain_delay + settings.drain_timeout + _END_MARGIN_SECONDS
        self._hub = Hub()
        self._lives: dict[int, WorkerLife] = {}
        self._taking: dict[int, ConnectionSender] = {}
        self._acceptor = Acceptor(listener, lambda: list(self._taking.values()))
        self._is_open = False
        self._signal: asyncio.Future[int]

    async def run(self) -> int:
        """Serve; the signal that ended it.

        Raises:
            SettingsError: a worker could not start.
        """
        loop = asyncio.get_running_loop()
        self._signal = loop.create_future()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._pass_on, number)
        keepers: list[asyncio.Future[None]] = [
            asyncio.ensure_future(self._keep(number)) for number in range(self._settings.workers)
        ]
        ends: list[asyncio.Future[Any]] = [self._signal, *keepers]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if self._signal.done():
                await asyncio.wait(keepers, timeout=self._end_seconds)
        finally:
            await self._end(keepers)
        for keeper in keepers:
            keeper.result()
        return self._signal.result()

    async def _end(self, keepers: list[asyncio.Future[None]]) -> None:
        """End what is left, at once."""
        if not self._signal.done():  # a worker could not start
            self._signal.set_result(signal.SIGTERM)
        for life in self._lives.values():
            life.send_signal(signal.SIGKILL)
        await asyncio.wait(keepers)
        self._acceptor.close()

    def _pass_on(self, number: int) -> None:
        """A signal has come: workers that serve drain, the others have nothing to lose."""
        if not self._signal.done():
            self._signal.set_result(number)
        for worker, life in self._lives.items():
            life.send_signal(number if worker in self._taking else signal.SIGKILL)

    async def _keep(self, number: int) -> None:
        """See to it that there is a worker of this number, until the end."""
        delay, restarts = _FIRST_DELAY_SECONDS, 0
        while True:
            started = time.monotonic()
            outcome = await self._one_life(number, restarts)
            if self._signal.done():
                return
            if not self._is_open:
                raise SettingsError(
                    outcome.get("reason")
                    or f"Worker {number} ended with {outcome['exit_code']} before the port was open; see its log above."
                )
            if time.monotonic() - started > _STEADY_SECONDS:
                delay = _FIRST_DELAY_SECONDS
            log.error("worker ended", extra={"fields": {"worker": number, **outcome, "restart_in_seconds": delay}})
            await asyncio.wait([self._signal], timeout=delay)
            if self._signal.done():
                return
            delay, restarts = min(2 * delay, _LONGEST_DELAY_SECONDS), restarts + 1

    async def _one_life(self, number: int, restarts: int) -> dict[str, Any]:
        """Start a worker and serve with it until it ends; what is known of its end."""
        try:
            life = WorkerLife(
                number,
                restarts,
                self._settings,
                self._hub.unloaded,
                end_seconds=self._end_seconds,
                answer=self._answer,
            )
        except OSError as error:
            return {"reason": f"Worker {number} could not be started ({error.strerror or error})."}
        self._lives[number] = life
        pid, reason = life.pid, ""
        living = asyncio.ensure_future(life.live())
        watching = asyncio.ensure_future(self._watch(life))
        try:
            await self._employ(life)
        except (SettingsError, ChannelError) as error:
            reason = str(error)
        finally:
            del self._lives[number]
            watching.cancel()
            await living
        return {"pid": pid, "exit_code": life.exit_code, **({"reason": reason} if reason else {})}

    async def _employ(self, life: WorkerLife) -> None:
        """Give ``life`` connections from when it is ready to when it stops."""
        models = await life.models
        await self._hub.admit(life.number, life.channel, life.unloaded)
        self._taking[life.number] = life.sender
        log.info("worker ready", extra={"fields": {"worker": life.number, "pid": life.pid}})
        if not self._is_open and len(self._taking) == self._settings.workers:
            self._open(models)
        await life.stopping.wait()
        del self._taking[life.number]
        if self._signal.done() and not self._taking:
            self._acceptor.close()
        await life.ended.wait()
        self._hub.dismiss(life.number)

    def _open(self, models: list[str]) -> None:
        listen(self._listener, self._settings)
        self._is_open = True
        self._acceptor.start()
        announce(self._listener, self._settings, models)

    async def _watch(self, life: WorkerLife) -> None:
        """Kill a worker that is stuck; it is replaced like any that ends."""
        await asyncio.wait([life.models])
        while True:
            await asyncio.sleep(_PING_SECONDS)
            try:
                await life.channel.ask({"do": "ping"}, _STUCK_SECONDS)
            except ChannelError as error:
                log.error("worker is stuck", extra={"fields": {"worker": life.number, "reason": str(error)}})
                life.send_signal(signal.SIGKILL)
                return

    async def _answer(self, asker: int, message: Message) -> Message:
        if message["do"] == "gather":
            return await self._hub.gather(asker, message["what"])
        return await self._hub.command(message["do"], message["model"])
