"""Tensors as the Open Inference Protocol carries them: as JSON, or little-endian and row-major behind the JSON.

JSON has no NaN and no infinity. Going in they are a malformed body; coming out they are null.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["bytes_from_binary", "bytes_to_binary", "floats_from_binary", "floats_from_json", "floats_to_binary"]

_FP32 = np.dtype("<f4")
_LENGTH = struct.Struct("<I")


def floats_from_binary(content: memoryview, shape: Sequence[int]) -> NDArray[np.float32]:
    """FP32 data -> float32 array of ``shape``, without a copy where the data are aligned.

    Raises:
        ValueError: another number of bytes than ``shape`` has.
    """
    expected = _count(shape) * _FP32.itemsize
    if len(content) != expected:
        raise ValueError(f"has {len(content)} bytes of data, but shape {list(shape)} of FP32 takes {expected}")
    # Compiled kernels may count on alignment.
    return np.require(np.frombuffer(content, dtype=_FP32), np.float32, "A").reshape(shape)


def floats_from_json(data: Any, shape: Sequence[int]) -> NDArray[np.float32]:
    """A flat list of numbers, or one nested as ``shape`` says, row by row -> float32 array of ``shape``.

    Raises:
        ValueError: other values than numbers, or another count or nesting.
    """
    values = _flatten(data, shape)
    if not set(map(type, values)) <= {int, float}:
        raise ValueError("has data that are not numbers")
    if len(values) != _count(shape):
        raise ValueError(f"has {len(values)} values, but shape {list(shape)} takes {_count(shape)}")
    with np.errstate(over="ignore"):  # too large a number becomes infinite
        return np.fromiter(values, dtype=np.float32, count=len(values)).reshape(shape)


def floats_to_binary(array: NDArray[np.floating[Any]]) -> memoryview:
    """Array -> FP32 data."""
    return np.ascontiguousarray(array, dtype=_FP32).reshape(-1).view(np.uint8).data


def bytes_from_binary(content: memoryview, count: int) -> list[bytes]:
    """BYTES data, each element behind its 4-byte length -> ``count`` elements.

    Raises:
        ValueError: another number of elements, or lengths that do not add up.
    """
    elements: list[bytes] = []
    position = 0
    while position < len(content):
        start = position + _LENGTH.size
        if len(elements) == count:
            raise ValueError(f"has more than the {count} elements of its shape")
        if start > len(content):
            raise ValueError("has data that end inside an element's length")
        position = start + _LENGTH.unpack_from(content, position)[0]
        if position > len(content):
            raise ValueError("has data that end inside an element")
        elements.append(bytes(content[start:position]))
    if len(elements) != count:
        raise ValueError(f"has {len(elements)} elements, but its shape takes {count}")
    return elements


def bytes_to_binary(elements: Iterable[bytes]) -> bytes:
    """Elements -> BYTES data."""
    return b"".join(_LENGTH.pack(len(element)) + element for element in elements)


def _flatten(data: Any, shape: Sequence[int]) -> list[Any]:
    if not isinstance(data, list):
        raise ValueError("has data that are not a list")
    values: list[Any] = data
    if not values or not isinstance(values[0], list):
        return values
    nested_otherwise = ValueError(f"has data that are not nested as shape {list(shape)} says")
    if not shape or len(values) != shape[0]:
        raise nested_otherwise
    for size in shape[1:]:
        if set(map(type, values)) != {list} or set(map(len, values)) != {size}:
            raise nested_otherwise
        values = list(chain.from_iterable(values))
    return values


def _count(shape: Sequence[int]) -> int:
    count = 1  # Python's integers do not overflow
    for size in shape:
        count *= size
    return count
