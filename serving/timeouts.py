"""How long things may take; ``asyncio.timeout``, also where Python does not have it yet."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from serving.errors import ApiError

if sys.version_info >= (3, 11):
    from asyncio import timeout
else:
    from async_timeout import timeout

__all__ = ["answer_within", "timeout"]


@asynccontextmanager
async def answer_within(seconds: float, *, since: float | None = None) -> AsyncIterator[None]:
    """Cancel what the block awaits when ``seconds`` are over, from now or ``since`` a time by the event loop's clock.

    All that is awaited for an answer belongs into the block, however short it is by itself: it may have to wait for a
    thread that is busy with others' images.

    Raises:
        ApiError: 504, they are over.
    """
    left = seconds if since is None else since + seconds - asyncio.get_running_loop().time()
    try:
        async with timeout(left):
            yield
    except asyncio.TimeoutError:
        raise ApiError(504, f"No answer within {seconds:g} seconds; send fewer images.") from None
