"""Questions between processes, over a real socket pair."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator

import pytest

from serving.workers.channel import Channel, ChannelError, Message, send_at_once

PATIENCE = 30.0


async def echo(question: Message) -> Message:
    if question.get("fail"):
        raise ValueError("a bug")
    await asyncio.sleep(question.get("sleep", 0))
    return question


@contextlib.asynccontextmanager
async def pair() -> AsyncIterator[tuple[Channel, Channel]]:
    left, right = socket.socketpair()
    channels = await Channel.over(left, echo), await Channel.over(right, echo)
    try:
        yield channels
    finally:
        for channel in channels:
            channel.close()


def test_both_ask_at_once_and_answers_find_their_questions() -> None:
    async def ask() -> None:
        async with pair() as (left, right):
            large = "x" * 300_000
            questions = [{"number": number, "sleep": 0.002 * (20 - number), "large": large} for number in range(20)]
            answers = await asyncio.gather(
                *(end.ask(question, PATIENCE) for question in questions for end in (left, right))
            )
            assert answers == [question for question in questions for _ in range(2)]

    asyncio.run(ask())


def test_no_answer_is_an_error(caplog: pytest.LogCaptureFixture) -> None:
    async def ask() -> None:
        async with pair() as (left, right):
            with pytest.raises(ChannelError, match="no answer in"):
                await left.ask({"sleep": 600}, 0.01)
            with caplog.at_level(logging.CRITICAL, "serving.workers"), pytest.raises(ChannelError, match="failed"):
                await left.ask({"fail": True}, PATIENCE)
            assert await left.ask({"still": "there"}, PATIENCE) == {"still": "there"}
            waiting = asyncio.ensure_future(left.ask({"sleep": 600}, PATIENCE))
            await asyncio.sleep(0)
            right.close()
            with pytest.raises(ChannelError, match="ended"):
                await waiting
            await left.ended()
            with pytest.raises(ChannelError, match="ended"):
                await left.ask({}, PATIENCE)

    asyncio.run(ask())


def test_last_words_are_heard() -> None:
    async def listen() -> list[Message]:
        heard: list[Message] = []

        async def hear(question: Message) -> Message:
            heard.append(question)
            return {}

        left, right = socket.socketpair()
        send_at_once(right, {"reason": "the file is damaged"})
        right.close()
        channel = await Channel.over(left, hear)
        await channel.ended()
        await asyncio.sleep(0)
        channel.close()
        return heard

    assert asyncio.run(listen()) == [{"reason": "the file is damaged"}]
