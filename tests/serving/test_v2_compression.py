"""Packed bodies: unpacked within the bound whatever they promise, and packed as the client asks."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.api.v2.compression import Coding, accepted_coding, compress, content_coding, decompress
from serving.errors import ApiError

CODINGS: list[Coding] = ["gzip", "deflate"]
UNPACK = {"gzip": gzip.decompress, "deflate": zlib.decompress}


@given(st.binary(max_size=5000), st.sampled_from(CODINGS))
def test_bodies_return(body: bytes, coding: Coding) -> None:
    packed = compress(body, coding)
    assert UNPACK[coding](packed) == body  # the standard library is the reference
    assert decompress(memoryview(packed), coding, len(body)) == body


@pytest.mark.parametrize("coding", CODINGS)
def test_a_bomb_is_refused_without_being_unpacked(coding: Coding) -> None:
    bomb = memoryview(compress(bytes(500_000_000), coding))
    assert len(bomb) < 3_000_000
    tracemalloc.start()
    try:
        with pytest.raises(ApiError, match="more than 1000000 bytes") as refused:
            decompress(bomb, coding, 1_000_000)
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
    finally:
        tracemalloc.stop()
    assert refused.value.status == 413


@pytest.mark.parametrize("coding", CODINGS)
def test_exactly_the_bound_is_accepted(coding: Coding) -> None:
    packed = memoryview(compress(bytes(1000), coding))
    assert decompress(packed, coding, 1000) == bytes(1000)
    with pytest.raises(ApiError, match="more than 999 bytes"):
        decompress(packed, coding, 999)


@given(st.binary(max_size=200), st.sampled_from(CODINGS))
def test_anything_is_a_body_or_an_error(content: bytes, coding: Coding) -> None:
    try:
        body = decompress(memoryview(content), coding, 1000)
    except ApiError:
        return
    assert UNPACK[coding](content) == body


@given(st.binary(min_size=1, max_size=200), st.sampled_from(CODINGS), st.data())
def test_a_body_cut_off_or_continued_is_refused(body: bytes, coding: Coding, data: st.DataObject) -> None:
    packed = compress(body, coding)
    for wrong in (packed[: data.draw(st.integers(0, len(packed) - 1))], packed + b"x", packed + packed):
        with pytest.raises(ApiError) as refused:
            decompress(memoryview(wrong), coding, 1000)
        assert refused.value.status == 400


@pytest.mark.parametrize(
    ("header", "coding"), [("", None), ("identity", None), ("GZip", "gzip"), (" deflate", "deflate")]
)
def test_content_coding(header: str, coding: Coding | None) -> None:
    assert content_coding(header) == coding


@pytest.mark.parametrize("header", ["br", "gzip, gzip", "gzip;q=1", "zstd", "x" * 5000])
def test_other_content_codings_are_refused(header: str) -> None:
    with pytest.raises(ApiError) as refused:
        content_coding(header)
    assert refused.value.status == 415
    assert len(refused.value.detail) < 200


@pytest.mark.parametrize(
    ("header", "coding"),
    [
        ("", None),
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("gzip, deflate", "gzip"),
        ("deflate;q=0.9, gzip;q=0.5, br", "deflate"),
        ("GZIP; q=0.3", "gzip"),
        ("gzip;q=0", None),
        ("gzip;q=0, deflate", "deflate"),
        ("identity", None),
        ("gzip;q=0.5, identity;q=0.9", None),
        ("gzip;q=0.5, identity;q=0.1", "gzip"),
        ("br, zstd", None),
        ("gzip;q=abc", None),
        ("gzip;q=nan", None),
        (";,;q=,,", None),
    ],
)
def test_accepted_coding(header: str, coding: Coding | None) -> None:
    assert accepted_coding(header) == coding


@given(st.text(max_size=40))
def test_any_accept_encoding_is_read(header: str) -> None:
    assert accepted_coding(header) in (None, "gzip", "deflate")
