"""How many requests may hold memory at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from serving.errors import ApiError

__all__ = ["Admission"]

_RETRY_AFTER_SECONDS = 1


class Admission:
    """At most ``limit`` requests are read, decoded, queued and run at a time; the next one is turned away at once.

    Used from the event loop only, so a plain counter is enough.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.admitted = 0

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Hold a place while the block runs.

        Raises:
            ApiError: 503 with Retry-After, if there is none.
        """
        if self.admitted >= self._limit:
            raise ApiError(
                503,
                f"The server is busy with {self.admitted} requests; try again.",
                {"Retry-After": str(_RETRY_AFTER_SECONDS)},
            )
        self.admitted += 1
        try:
            yield
        finally:
            self.admitted -= 1
