"""What a worker asks of all workers, itself included, when a client asks it something about the whole server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from serving.errors import ApiError
from serving.workers.channel import Channel, ChannelError
from serving.workers.hub import GATHER_SECONDS, LOAD_SECONDS
from serving.workers.merged_metrics import merge_metrics

__all__ = ["Peers"]

# The parent answers within the first; this is for a parent that has ended or hangs.
_MARGIN_SECONDS = 2.0


class Peers:
    """The workers of one server, as one of them, ``worker``, sees them.

    Attributes:
        worker: its number.
        count: how many there should be.
        restarts: how often this one has been replaced since the server started.
    """

    def __init__(self, worker: int, count: int, restarts: int) -> None:
        self.worker, self.count, self.restarts = worker, count, restarts
        self._parent: Channel | None = None

    def connect(self, parent: Channel) -> None:
        """From now on the others can be asked, through ``parent``."""
        self._parent = parent

    async def metrics(self, own: bytes) -> bytes:
        """The metrics of all workers that can be asked now; ``own`` are those of this one."""
        others = await self._gather("metrics")
        texts = {self.worker: own.decode(), **{worker: answer["text"] for worker, answer in others.items()}}
        return merge_metrics(dict(sorted(texts.items()))).encode()

    async def statistics(self) -> list[Mapping[str, Any]]:
        """What the versions of the models have done in the other workers that can be asked now."""
        others = await self._gather("statistics")
        return [version for answer in others.values() for version in answer["versions"]]

    async def load(self, name: str) -> None:
        """As :meth:`serving.models.ModelRegistry.load`, in all workers; an error of one is raised here."""
        await self._command("load", name)

    async def unload(self, name: str) -> None:
        """As :meth:`serving.models.ModelRegistry.unload`, in all workers; an error of one is raised here."""
        await self._command("unload", name)

    async def _gather(self, what: str) -> dict[int, Mapping[str, Any]]:
        if self._parent is None:
            return {}
        try:
            answer = await self._parent.ask({"do": "gather", "what": what}, GATHER_SECONDS + _MARGIN_SECONDS)
        except ChannelError:  # the parent has ended, and this worker is about to
            return {}
        return {int(worker): content for worker, content in answer["answers"].items()}

    async def _command(self, do: str, name: str) -> None:
        if self._parent is None:
            raise ApiError(503, "The server is starting; try again.", {"Retry-After": "1"})
        try:
            answer = await self._parent.ask({"do": do, "model": name}, LOAD_SECONDS + _MARGIN_SECONDS)
        except ChannelError as error:
            raise ApiError(503, f"The other workers cannot be reached: {error}.", {"Retry-After": "1"}) from error
        if answer:
            raise ApiError(answer["status"], answer["detail"], answer["headers"])
