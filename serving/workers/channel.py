"""Questions and answers between two processes, both ways over one socket."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

__all__ = ["Channel", "ChannelError", "Message", "send_at_once"]

Message = Mapping[str, Any]

_MAX_BYTES = 64 * 2**20
_LENGTH_BYTES = 4

log = logging.getLogger("serving.workers")


class ChannelError(Exception):
    """There is no answer: the other process has ended, failed at the question, or is too slow."""


class Channel:
    """One end. A message is JSON behind its length; ``answer`` is called with every question of the other end.

    Args:
        reader: from the other end.
        writer: to the other end.
        answer: gives the answer; what it raises is logged, and a :class:`ChannelError` over there.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        answer: Callable[[Message], Awaitable[Message]],
    ) -> None:
        self._reader, self._writer, self._answer = reader, writer, answer
        self._numbers = itertools.count()
        self._asked: dict[int, asyncio.Future[Message]] = {}
        self._answering: set[asyncio.Task[None]] = set()
        self._task = asyncio.ensure_future(self._run())

    @classmethod
    async def over(cls, end: socket.socket, answer: Callable[[Message], Awaitable[Message]]) -> Channel:
        """A channel over one end of a socket pair."""
        return cls(*await asyncio.open_unix_connection(sock=end), answer)

    @property
    def has_ended(self) -> bool:
        """Whether the other end has closed."""
        return self._task.done()

    async def ask(self, question: Message, seconds: float) -> Message:
        """The other end's answer.

        Raises:
            ChannelError: there is none within ``seconds``.
        """
        if self.has_ended:
            raise ChannelError("the other process has ended")
        number = next(self._numbers)
        answer = self._asked[number] = asyncio.get_running_loop().create_future()
        try:
            self._write({"question": number, "content": question})
            return await asyncio.wait_for(answer, seconds)
        except asyncio.TimeoutError:
            raise ChannelError(f"no answer in {seconds:g} seconds") from None
        finally:
            del self._asked[number]

    async def ended(self) -> None:
        """Return when the other end has closed, and all that it has said was read."""
        await asyncio.wait([self._task])

    def close(self) -> None:
        """Close this end."""
        self._task.cancel()
        self._writer.close()

    async def _run(self) -> None:
        try:
            while True:
                length = int.from_bytes(await self._reader.readexactly(_LENGTH_BYTES), "big")
                if length > _MAX_BYTES:
                    log.error("message too large", extra={"fields": {"bytes": length}})
                    return
                self._read(json.loads(await self._reader.readexactly(length)))
        except (asyncio.IncompleteReadError, OSError):
            pass  # the other process has ended
        finally:
            for answer in self._asked.values():
                if not answer.done():
                    answer.set_exception(ChannelError("the other process has ended"))

    def _read(self, message: Message) -> None:
        if "question" in message:
            task = asyncio.ensure_future(self._reply(message["question"], message["content"]))
            self._answering.add(task)
            task.add_done_callback(self._answering.discard)
            return
        answer = self._asked.get(message["answer"])
        if answer is None or answer.done():
            return  # nobody waits for it any more
        if message["content"] is None:
            answer.set_exception(ChannelError("the other process failed; its log has the details"))
        else:
            answer.set_result(message["content"])

    async def _reply(self, number: int, question: Message) -> None:
        content: Message | None = None
        try:
            content = await self._answer(question)
        except Exception:  # a bug; whoever asked must not wait for it
            log.exception("a question between processes failed")
        self._write({"answer": number, "content": content})

    def _write(self, message: Message) -> None:
        if not self._writer.is_closing():
            self._writer.write(_frame(message))


def send_at_once(end: socket.socket, question: Message) -> None:
    """Say something over an end that has no event loop; the answer is not waited for."""
    end.sendall(_frame({"question": 0, "content": question}))


def _frame(message: Message) -> bytes:
    content = json.dumps(message).encode()
    return len(content).to_bytes(_LENGTH_BYTES, "big") + content
