"""Tensors survive the way over the wire, and nothing else is taken for one."""

from __future__ import annotations

import struct

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from serving.api.v2.tensors import (
    bytes_from_binary,
    bytes_to_binary,
    floats_from_binary,
    floats_from_json,
    floats_to_binary,
)

any_floats = hnp.arrays(np.float32, hnp.array_shapes(max_dims=5, max_side=4), elements=st.floats(width=32))
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
finite_floats = hnp.arrays(np.float32, hnp.array_shapes(max_dims=5, max_side=4), elements=finite)


@given(any_floats, st.integers(0, 9))
def test_binary_floats_return_bit_by_bit_from_any_address(array: np.ndarray, front: int) -> None:
    body = bytearray(front) + floats_to_binary(array)
    back = floats_from_binary(memoryview(body)[front:], array.shape)
    assert back.dtype == np.float32
    assert back.flags.aligned
    assert back.shape == array.shape
    assert back.tobytes() == array.astype("<f4").tobytes()


def test_aligned_binary_floats_are_not_copied() -> None:
    body = bytearray(struct.pack("<4f", 1, 2, 3, 4))
    array = floats_from_binary(memoryview(body), (2, 2))
    assert np.shares_memory(array, np.frombuffer(body, np.uint8))
    assert array.tolist() == [[1, 2], [3, 4]]


def test_strided_arrays_are_written_row_by_row() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3).T
    assert bytes(floats_to_binary(array)) == struct.pack("<6f", 0, 3, 1, 4, 2, 5)


@given(finite_floats, st.booleans())
def test_json_floats_return_exactly_flat_or_nested(array: np.ndarray, nested: bool) -> None:
    data = orjson.loads(orjson.dumps(array if nested else array.reshape(-1), option=orjson.OPT_SERIALIZE_NUMPY))
    assert floats_from_json(data, array.shape).tobytes() == array.tobytes()


@given(st.lists(st.binary(max_size=40), max_size=8))
def test_bytes_return(elements: list[bytes]) -> None:
    assert bytes_from_binary(memoryview(bytes_to_binary(elements)), len(elements)) == elements


@given(st.lists(st.binary(max_size=20), min_size=1, max_size=4), st.data())
def test_bytes_cut_anywhere_are_refused(elements: list[bytes], data: st.DataObject) -> None:
    encoded = bytes_to_binary(elements)
    cut = data.draw(st.integers(0, len(encoded) - 1))
    with pytest.raises(ValueError, match="has"):
        bytes_from_binary(memoryview(encoded[:cut]), len(elements))


@given(st.binary(max_size=60), st.integers(0, 5))
def test_bytes_of_anything_are_elements_or_an_error(content: bytes, count: int) -> None:
    try:
        elements = bytes_from_binary(memoryview(content), count)
    except ValueError:
        return
    assert bytes_to_binary(elements) == content
    assert len(elements) == count


@pytest.mark.parametrize("shape", [(1, 2), (3,), (2**62, 2**62, 4), (0,), ()])
def test_binary_of_another_size_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="bytes of data"):
        floats_from_binary(memoryview(bytes(16)), shape)


@pytest.mark.parametrize(
    "data",
    [
        None,
        "1234",
        {"a": 1},
        5,
        [],
        [1, 2, 3],
        [1, 2, 3, 4, 5],
        [1, 2, 3, "4"],
        [1, 2, 3, None],
        [1, 2, 3, True],
        [1, 2, 3, {}],
        [1, 2, 3, [4]],
        [[1, 2], [3, 4, 5]],
        [[1, 2], [3]],
        [[1, 2], 3],
        [[1, 2], "ab"],
        [[1, 2, 3, 4]],
        [[1], [2], [3], [4]],
        [[[1, 2]], [[3, 4]]],
        [[[1], [2]], [[3], [4]]],
        [["1", "2"], ["3", "4"]],
        [[], []],
        # As an array of text this would take a terabyte.
        ["", "x" * 2**20] * 2**17,
    ],
)
def test_json_that_is_no_two_by_two_matrix_is_refused(data: object) -> None:
    with pytest.raises(ValueError, match="has"):
        floats_from_json(data, (2, 2))


def test_a_number_beyond_float32_becomes_infinite_without_a_warning() -> None:
    assert floats_from_json([1e39, -1e300, 2**64 - 1], (3,)).tolist() == [np.inf, -np.inf, 2.0**64]


any_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=20,
)


@given(any_json, st.lists(st.integers(0, 4), max_size=4))
def test_any_json_is_a_tensor_of_the_shape_or_an_error(data: object, shape: list[int]) -> None:
    try:
        array = floats_from_json(data, shape)
    except ValueError:
        return
    assert array.shape == tuple(shape)
