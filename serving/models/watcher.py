"""Look at the model files again and again."""

from __future__ import annotations

import logging
import threading

from serving.models.registry import ModelRegistry

__all__ = ["Watcher"]

log = logging.getLogger("serving.models")


class Watcher:
    """A thread that refreshes ``registry`` every ``seconds``, until it is closed; 0 seconds: there is none.

    Files are looked at, not subscribed to: that works on every file system, network ones included.
    """

    def __init__(self, registry: ModelRegistry, seconds: float) -> None:
        self._registry, self._seconds = registry, seconds
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="model-watcher", daemon=True)
        if seconds > 0:
            self._thread.start()

    def close(self) -> None:
        """End the thread; a load that is under way is not waited for."""
        self._closed.set()

    def _watch(self) -> None:
        while not self._closed.wait(self._seconds):
            try:
                self._registry.refresh()
            except OSError as error:
                log.error("model folder unreadable", extra={"fields": {"reason": str(error)}})
            except Exception:  # a bug in loading must not end the watching
                log.exception("model refresh failed")
