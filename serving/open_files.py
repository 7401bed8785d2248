"""How many files, connections among them, this process may have open."""

from __future__ import annotations

import contextlib
import logging
import sys

from serving.protocol import SPARE_CONNECTIONS
from serving.settings import ServingSettings

__all__ = ["within_open_files"]

# Besides connections: libraries, model files while they are read, the log, and what the event loop needs.
_OTHER_FILES = 64

log = logging.getLogger("serving")


def within_open_files(settings: ServingSettings) -> ServingSettings:
    """``settings`` with no more connections than this process may have open, whose limit is raised as far as it may be.

    Without a file descriptor left, connections would be reset by the system before anybody could log or refuse them.
    """
    others = SPARE_CONNECTIONS + _OTHER_FILES
    needed = settings.max_connections + others
    allowed = _allow(needed)
    if allowed >= needed:
        return settings
    possible = max(1, allowed - others)
    fields = {"open_files_allowed": allowed, "open_files_needed": needed, "max_connections": possible}
    log.warning("too few open files allowed (ulimit -n): fewer connections are accepted", extra={"fields": fields})
    return settings.model_copy(update={"max_connections": possible})


def _allow(files: int) -> int:
    """How many files may be open after asking for that many; more may be than were asked for."""
    if sys.platform == "win32":
        return files
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= files:
        return files
    wanted = files if hard == resource.RLIM_INFINITY else min(files, hard)
    with contextlib.suppress(OSError, ValueError):  # a system may have a limit below its "hard" one
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
