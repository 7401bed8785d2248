"""A worker does not outlive its parent, however that ended."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import time

__all__ = ["end_with_parent"]

log = logging.getLogger("serving.workers")


def end_with_parent(seconds: float) -> None:
    """Once the parent is gone: drain, as if SIGTERM had come, and end after ``seconds`` in any case."""
    threading.Thread(target=_watch, args=(seconds,), name="parent-watcher", daemon=True).start()


def _watch(seconds: float) -> None:
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    parent.join()  # a pipe that the kernel closes when the parent ends
    log.error("the parent has ended")
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(seconds)
    os._exit(1)
