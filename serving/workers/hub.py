"""The parent's part in what concerns all workers: it passes questions on, and remembers what commands have changed."""

from __future__ import annotations

import asyncio

from serving.workers.channel import Channel, ChannelError, Message

__all__ = ["GATHER_SECONDS", "LOAD_SECONDS", "Hub"]

# A worker that says nothing in this time is left out: a scrape must end before Prometheus gives it up.
GATHER_SECONDS = 3.0
# For a model to be loaded in every worker.
LOAD_SECONDS = 600.0

# Answers to a load after which the model is to be there: done, or its file cannot be served yet.
_WANTED = (None, 422)


class Hub:
    """The workers that are ready, and which models are to be unloaded.

    Commands go to all workers one after another, in the same order. A worker that is not ready gets what it has missed
    before it is admitted.
    """

    def __init__(self) -> None:
        self._ready: dict[int, Channel] = {}
        self._unloaded: frozenset[str] = frozenset()
        self._one_command = asyncio.Lock()

    @property
    def unloaded(self) -> frozenset[str]:
        """Models that clients have unloaded: a worker that starts now leaves them out."""
        return self._unloaded

    async def admit(self, number: int, channel: Channel, without: frozenset[str]) -> None:
        """Worker ``number`` is ready; it left the models ``without`` out.

        Raises:
            ChannelError: it has ended meanwhile.
        """
        async with self._one_command:
            for name in without ^ self._unloaded:
                do = "unload" if name in self._unloaded else "load"
                await channel.ask({"do": do, "model": name}, LOAD_SECONDS)
            self._ready[number] = channel

    def dismiss(self, number: int) -> None:
        """Worker ``number`` has ended."""
        self._ready.pop(number, None)

    async def gather(self, asker: int, what: str) -> Message:
        """What each ready worker but ``asker`` answers, of those that answer in time."""
        channels = {number: channel for number, channel in self._ready.items() if number != asker}
        answers = await self._ask_all(channels, {"do": what}, GATHER_SECONDS)
        return {"answers": {number: found for number, found in answers.items() if not isinstance(found, ChannelError)}}

    async def command(self, do: str, name: str) -> Message:
        """``load`` or ``unload`` a model in every worker.

        The answer is empty, or the first error: its ``status``, ``detail`` and ``headers``.

        A worker that ends meanwhile is no error: whatever takes its place is brought to the same state.
        """
        async with self._one_command:
            channels = dict(self._ready)
            answers = await self._ask_all(channels, {"do": do, "model": name}, LOAD_SECONDS)
            statuses = [found.get("status") for found in answers.values() if not isinstance(found, ChannelError)]
            if do == "unload" and None in statuses:
                self._unloaded |= {name}
            if do == "load" and any(status in _WANTED for status in statuses):
                self._unloaded -= {name}
        for number, found in answers.items():
            if isinstance(found, ChannelError):
                if not channels[number].has_ended:
                    return {"status": 503, "detail": f"Worker {number} did not do it: {found}.", "headers": {}}
            elif found:
                return found
        return {}

    async def _ask_all(
        self, channels: dict[int, Channel], question: Message, seconds: float
    ) -> dict[int, Message | ChannelError]:
        async def ask(channel: Channel) -> Message | ChannelError:
            try:
                return await channel.ask(question, seconds)
            except ChannelError as error:
                return error

        return dict(zip(channels, await asyncio.gather(*map(ask, channels.values())), strict=True))
