"""Where inference runs: a few threads off the event loop, shared by all models in turn."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TypeVar

__all__ = ["InferencePool"]

T = TypeVar("T")


class InferencePool:
    """At most ``concurrency`` inferences at once. Whoever waits for a slot gets one in the order of asking.

    A batch is composed after its slot is granted, so that it takes along all that arrived meanwhile; and a model that
    has just run asks again behind the others, so that no model starves another.
    """

    def __init__(self, concurrency: int) -> None:
        self.concurrency = concurrency
        self._slots = asyncio.Semaphore(concurrency)
        self._threads = ThreadPoolExecutor(max_workers=concurrency, thread_name_prefix="inference")

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Hold one of the slots while the block runs."""
        async with self._slots:
            yield

    async def run(self, function: Callable[[], T]) -> T:
        """Call ``function`` in a thread; to be awaited inside :meth:`slot`."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, function)

    def close(self) -> None:
        """Stop the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)
