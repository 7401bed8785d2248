"""One of several serving processes: all of ``cbn-serve`` but the listening, and answers to the parent's questions."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import uvicorn

from cbn_deploy.errors import CbnError
from serving.app import create_app
from serving.draining import DrainingServer
from serving.errors import ApiError
from serving.logs import configure_logging
from serving.models import ServedModel
from serving.open_files import within_open_files
from serving.process import model_names, tls_files, uvicorn_config, without_created_series
from serving.services import Services
from serving.signals import exit_on_sigterm
from serving.workers.channel import Channel, ChannelError, Message, send_at_once
from serving.workers.handover import ConnectionReceiver
from serving.workers.parent import end_with_parent
from serving.workers.peers import Peers
from serving.workers.start import WorkerStart

__all__ = ["run_worker"]

# The parent answers these at once.
_TELL_SECONDS = 60.0
# At the end, for connections that have just been handed over; without TLS they are open at once.
_OPEN_SECONDS = 1.0

log = logging.getLogger("serving.workers")


def run_worker(start: WorkerStart) -> None:
    """The process: load the models, tell the parent, serve what it hands over until a signal comes."""
    _set_up(start)
    try:
        settings = within_open_files(start.settings)
        tls = tls_files(settings)
        application = create_app(settings, unloaded=start.unloaded)
        try:
            config = uvicorn_config(application, settings, tls)
            services: Services = application.state.services
            services.peers = Peers(start.number, start.settings.workers, start.restarts)
            _Server(config, services, services.peers, start).run()
        finally:
            application.state.services.close()
    except CbnError as error:
        send_at_once(start.control, {"do": "failed", "reason": str(error)})
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception:
        log.exception("worker failed")
        sys.exit(1)


def _set_up(start: WorkerStart) -> None:
    configure_logging()
    for handler in logging.getLogger().handlers:
        handler.addFilter(partial(_with_worker, start.number))
    without_created_series()
    # The terminal's Ctrl-C goes to the parent's group; the parent passes it on.
    os.setpgid(0, 0)
    exit_on_sigterm()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
    end_with_parent(start.end_seconds)


def _with_worker(number: int, record: logging.LogRecord) -> bool:
    record.fields = {"worker": number, **getattr(record, "fields", {})}
    return True


class _Server(DrainingServer):
    """Takes its connections from the parent instead of a port."""

    def __init__(self, config: uvicorn.Config, services: Services, peers: Peers, start: WorkerStart) -> None:
        super().__init__(config, services.drain, start.settings.drain_delay)
        self._services, self._peers, self._control = services, peers, start.control
        self._receiver = ConnectionReceiver(start.connections, self._take)
        config.http_protocol_class = _telling_its_end(config.http_protocol_class, self._receiver.closed)
        self._opening: set[asyncio.Task[None]] = set()
        services.connections = lambda: len(self.server_state.connections)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Take connections, and tell the parent so."""
        await super().startup(sockets or [])
        self._receiver.start()
        self._parent = await Channel.over(self._control, partial(_answer, self._services))
        self._peers.connect(self._parent)
        await self._tell({"do": "ready", "models": model_names(self._services)})

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take what the parent has handed over already, and no more; then as uvicorn does."""
        self._receiver.stop()
        await self._tell({"do": "stopping"})
        if self._opening:
            await asyncio.wait(self._opening, timeout=_OPEN_SECONDS)
        await super().shutdown(sockets or [])
        self._parent.close()

    async def _tell(self, message: Message) -> None:
        try:
            await self._parent.ask(message, _TELL_SECONDS)
        except ChannelError as error:  # the parent has ended, and so will this process
            log.warning("the parent cannot be told", extra={"fields": {"reason": str(error)}})

    def _take(self, connection: socket.socket) -> None:
        task = asyncio.ensure_future(self._open(connection))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _open(self, connection: socket.socket) -> None:
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await asyncio.get_running_loop().connect_accepted_socket(
                self._connection, connection, ssl=self.config.ssl, ssl_handshake_timeout=self.handshake_seconds
            )
        except OSError:  # the client has gone, or its TLS handshake failed: it has no protocol that could tell
            connection.close()
            self._receiver.closed()


def _telling_its_end(protocol: Any, closed: Callable[[], None]) -> Any:
    """The protocol class, calling ``closed`` at the end of every connection."""

    class Telling(protocol):  # type: ignore[misc]  # uvicorn names its protocol at run time
        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            closed()

    return Telling


async def _answer(services: Services, question: Message) -> Message:
    """What the parent asks, for itself or for another worker."""
    match question["do"]:
        case "metrics":
            return {"text": services.metrics.render().decode()}
        case "statistics":
            return {"versions": [_tally(model) for model in services.registry]}
        case "load" | "unload" as do:
            registry = services.registry
            try:
                await (registry.load if do == "load" else registry.unload)(question["model"])
            except ApiError as error:
                return {"status": error.status, "detail": error.detail, "headers": error.headers}
    return {}


def _tally(model: ServedModel) -> Message:
    return {"name": model.name, "version": model.version, "counted": model.statistics.to_dict()}
