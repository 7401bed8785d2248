"""Read a request's body within bounds: of size, so that it cannot fill the memory, and of time, so that it ends."""

from __future__ import annotations

import asyncio

from fastapi import Request
from starlette.requests import ClientDisconnect

from serving.errors import ApiError
from serving.timeouts import timeout

__all__ = ["read_body"]


async def read_body(request: Request, max_bytes: int, seconds: float, *, front: int = 0) -> memoryview:
    """The whole body, if it is at most ``max_bytes`` long and arrives within ``seconds``.

    Args:
        request: whose body nobody has read yet.
        max_bytes: judged by Content-Length before reading and by what arrives while reading.
        seconds: that it may take to arrive.
        front: how many bytes the body starts after an address that is a multiple of 16, so that a tensor which follows
            some text in the body can be used where it lies.

    Raises:
        ApiError: 413 too large; 408 too slow; 400 cut off.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise _too_large(max_bytes)
    try:
        async with timeout(seconds):
            return await _collect(request, max_bytes, front)
    except asyncio.TimeoutError:
        raise ApiError(
            408, f"The body did not arrive within {seconds:g} seconds; send it faster.", {"Connection": "close"}
        ) from None
    except ClientDisconnect:
        raise ApiError(400, "The connection closed before the whole body had arrived.") from None


async def _collect(request: Request, max_bytes: int, front: int) -> memoryview:
    body = bytearray(front)
    async for chunk in request.stream():
        body += chunk
        if len(body) - front > max_bytes:
            raise _too_large(max_bytes)
    return memoryview(body)[front:]


def _too_large(max_bytes: int) -> ApiError:
    return ApiError(413, f"The body has more than {max_bytes} bytes; send a smaller image or fewer images.")
