"""How many requests may hold memory at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from serving.errors import ApiError
from serving.models import ServedModel

__all__ = ["Admission"]


class Admission:
    """At most ``limit`` requests of a model are read, decoded, queued and run at a time; the next is turned away.

    Each model has its own ``limit`` places, so that a slow one cannot take them from the others. Used from the event
    loop only, so plain counters are enough.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._admitted: Counter[str] = Counter()

    def admitted(self, name: str) -> int:
        """Places that are held, of the model called ``name``."""
        return self._admitted[name]

    @contextmanager
    def admit(self, model: ServedModel) -> Iterator[None]:
        """Hold one of ``model``'s places while the block runs.

        Raises:
            ApiError: 503, if there is none; Retry-After is the time that those before take at the measured rate.
        """
        admitted = self._admitted[model.name]
        if admitted >= self._limit:
            raise ApiError(
                503,
                f"{model.name} is busy with {admitted} requests; try again.",
                {"Retry-After": str(model.batcher.retry_after(admitted))},
                reason="queue_full",
            )
        self._admitted[model.name] += 1
        try:
            yield
        finally:
            self._admitted[model.name] -= 1
