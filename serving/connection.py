"""Notice that a client has gone: whatever is being done for it is given up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Request

from serving.errors import CLIENT_GONE, ApiError

__all__ = ["while_connected"]

_UNWATCHED_SECONDS = 0.05


@asynccontextmanager
async def while_connected(request: Request) -> AsyncIterator[None]:
    """Run the block, and cancel what it awaits as soon as the client closes its connection.

    To be entered when the whole body has been read: what the connection has to say after that is that it ended. A
    server does not do this by itself; a handler of a client that has gone runs to its end otherwise. Nobody looks for
    the first 50 ms: most requests are over by then, and a task for each of them would cost more than the few that are
    finished for nobody.

    Raises:
        ApiError: 499, the client has gone; nobody will read it, but logs and metrics tell it from our own failures.
    """
    handler = asyncio.current_task()
    if handler is None:
        raise RuntimeError("while_connected must be entered in a task")
    gone = False

    async def watch() -> None:
        nonlocal gone
        while (await request.receive())["type"] != "http.disconnect":
            pass
        gone = True
        handler.cancel()

    watchers: list[asyncio.Task[None]] = []
    loop = asyncio.get_running_loop()
    look = loop.call_later(_UNWATCHED_SECONDS, lambda: watchers.append(loop.create_task(watch())))
    try:
        yield
    except asyncio.CancelledError:
        if not gone:  # somebody else's cancellation, such as the end of a drain
            raise
        if hasattr(handler, "uncancel"):  # since Python 3.11
            handler.uncancel()
        raise ApiError(CLIENT_GONE, "The client closed the connection before the answer.") from None
    finally:
        look.cancel()
        for watcher in watchers:
            watcher.cancel()
