"""Commands to all workers: what is remembered, and what a worker that was away is told."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import pytest

from serving.workers.channel import Channel, ChannelError, Message
from serving.workers.hub import Hub


class Model:
    """A worker whose models are a set of names; ``broken`` ones cannot be loaded."""

    def __init__(self, *names: str, broken: str = "") -> None:
        self.names, self.broken = set(names), broken
        self.told: list[tuple[str, str]] = []

    async def answer(self, question: Message) -> Message:
        do, name = question["do"], question.get("model", "")
        if do == "metrics":
            return {"text": ",".join(sorted(self.names))}
        self.told.append((do, name))
        if name == "nobody":
            return {"status": 404, "detail": "There is none."}
        if do == "load" and name == self.broken:
            return {"status": 422, "detail": "It is damaged."}
        self.names = self.names | {name} if do == "load" else self.names - {name}
        return {}


@contextlib.asynccontextmanager
async def channel_to(worker: Model) -> AsyncIterator[Channel]:
    left, right = socket.socketpair()
    parent, other = await Channel.over(left, worker.answer), await Channel.over(right, worker.answer)
    try:
        yield parent
    finally:
        parent.close()
        other.close()


def test_commands_reach_all_and_are_made_up_for() -> None:
    async def command() -> None:
        hub, first, second = Hub(), Model("a", "b"), Model("a", "b")
        async with channel_to(first) as one, channel_to(second) as two:
            await hub.admit(0, one, frozenset())
            assert await hub.command("unload", "a") == {}
            assert hub.unloaded == {"a"}
            await hub.admit(1, two, frozenset())  # started before the command
            assert second.names == first.names == {"b"}
            assert await hub.command("load", "a") == {}
            assert hub.unloaded == frozenset()
            assert second.names == first.names == {"a", "b"}
            assert await hub.gather(0, "metrics") == {"answers": {1: {"text": "a,b"}}}
            third = Model("b")
            async with channel_to(third) as three:
                await hub.admit(2, three, frozenset({"a"}))
                assert third.names == {"a", "b"}

    asyncio.run(command())


def test_an_error_of_one_is_the_answer() -> None:
    async def command() -> None:
        hub, sound, damaged = Hub(), Model("a"), Model("a", broken="a")
        async with channel_to(sound) as one, channel_to(damaged) as two:
            await hub.admit(0, one, frozenset())
            await hub.admit(1, two, frozenset())
            assert await hub.command("load", "nobody") == {"status": 404, "detail": "There is none."}
            assert await hub.command("unload", "nobody") == {"status": 404, "detail": "There is none."}
            assert hub.unloaded == frozenset()
            await hub.command("unload", "a")
            assert await hub.command("load", "a") == {"status": 422, "detail": "It is damaged."}
            assert hub.unloaded == frozenset()  # it is to be there, as soon as it can

    asyncio.run(command())


def test_a_worker_that_ends_is_left_out() -> None:
    async def command() -> None:
        hub, worker = Hub(), Model("a")
        async with channel_to(worker) as one:
            left, right = socket.socketpair()
            right.close()
            gone = await Channel.over(left, worker.answer)
            await hub.admit(0, one, frozenset())
            await hub.admit(1, gone, frozenset())
            assert await hub.gather(5, "metrics") == {"answers": {0: {"text": "a"}}}
            assert await hub.command("unload", "a") == {}
            assert worker.names == set()
            hub.dismiss(1)
            with pytest.raises(ChannelError):
                await hub.admit(1, gone, frozenset())
            gone.close()

    asyncio.run(command())
