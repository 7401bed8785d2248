"""gzip and deflate of inference bodies: unpacked within a bound, packed when the client asks."""

from __future__ import annotations

import zlib
from typing import Literal

from serving.errors import ApiError

__all__ = ["Coding", "accepted_coding", "compress", "content_coding", "decompress"]

Coding = Literal["gzip", "deflate"]

# zlib's names of the two formats: RFC 1952, and RFC 1950, which is what HTTP calls deflate.
_WINDOW: dict[Coding, int] = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
# Tensors hardly shrink further, and higher levels take several times as long.
_LEVEL = 1


def content_coding(header: str) -> Coding | None:
    """How a body with this Content-Encoding is packed; ``None``: not at all.

    Raises:
        ApiError: 415, another coding, or several.
    """
    coding = header.strip().lower()
    match coding:
        case "" | "identity":
            return None
        case "gzip" | "deflate":
            return coding
    raise ApiError(415, f"The Content-Encoding {header[:80]!r} is not supported; use gzip, deflate or none.")


def accepted_coding(header: str) -> Coding | None:
    """The coding to pack an answer with, by the request's Accept-Encoding (RFC 9110, section 12.5.3).

    The one with the highest weight, gzip before deflate; ``None`` where neither is named, or identity is preferred.
    """
    weights = dict(map(_weighted, header.lower().split(",")))
    best: Coding = "gzip" if weights.get("gzip", 0.0) >= weights.get("deflate", 0.0) else "deflate"
    weight = weights.get(best, 0.0)
    return best if weight > 0 and weight >= weights.get("identity", 0.0) else None


def decompress(body: memoryview, coding: Coding, max_bytes: int) -> memoryview:
    """Unpack ``body``. Never holds more than ``max_bytes`` of what comes out, however much was promised or would come.

    Raises:
        ApiError: 413, more than ``max_bytes`` come out; 400, damaged, cut off, or followed by something else.
    """
    inflater = zlib.decompressobj(_WINDOW[coding])
    try:
        content = inflater.decompress(body, max_bytes + 1)
    except zlib.error:
        raise ApiError(400, f"The body is not valid {coding}.") from None
    if len(content) > max_bytes:
        raise ApiError(413, f"The body has more than {max_bytes} bytes when unpacked; send fewer images.")
    if not inflater.eof:
        raise ApiError(400, f"The {coding} body is cut off.")
    if inflater.unused_data:
        raise ApiError(400, f"Something follows the end of the {coding} body.")
    return memoryview(content)


def compress(body: bytes, coding: Coding) -> bytes:
    """Pack ``body``."""
    deflater = zlib.compressobj(_LEVEL, zlib.DEFLATED, _WINDOW[coding])
    return deflater.compress(body) + deflater.flush()


def _weighted(item: str) -> tuple[str, float]:
    """``gzip;q=0.5`` -> ("gzip", 0.5); a weight that cannot be read is 0."""
    coding, _, parameter = item.partition(";")
    name, _, value = parameter.replace(" ", "").partition("=")
    if name != "q":
        return coding.strip(), 1.0
    try:
        return coding.strip(), float(value)
    except ValueError:
        return coding.strip(), 0.0
