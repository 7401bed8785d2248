"""The port: bound, opened, and told to the log."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Sequence

from cbn_deploy.errors import SettingsError
from serving.settings import ServingSettings

__all__ = ["announce", "bind", "listen"]

_BACKLOG = 2048

log = logging.getLogger("serving")


def bind(settings: ServingSettings) -> socket.socket:
    """A socket that holds the address; clients are refused until :func:`listen`.

    Raises:
        SettingsError: the address is taken, or not this machine's.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((settings.host, settings.port))
    except OSError as error:
        listener.close()
        raise _refused(settings, error) from error
    return listener


def listen(listener: socket.socket, settings: ServingSettings) -> None:
    """Open the port.

    Raises:
        SettingsError: somebody else has opened it since :func:`bind`.
    """
    try:
        listener.listen(_BACKLOG)
    except OSError as error:
        raise _refused(settings, error) from error


def announce(listener: socket.socket, settings: ServingSettings, models: Sequence[str]) -> None:
    """Log where the server is, and what it serves."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    url = f"{'https' if settings.tls_cert else 'http'}://{host}:{listener.getsockname()[1]}"
    log.info("serving", extra={"fields": {"url": url, "docs": f"{url}/docs", "models": list(models)}})


def _refused(settings: ServingSettings, error: OSError) -> SettingsError:
    return SettingsError(
        f"Cannot listen on {settings.host}:{settings.port} ({error.strerror or error}); "
        "choose another --host or --port."
    )
