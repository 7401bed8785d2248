"""The form parser, against forms that httpx writes and bodies that are broken."""

from __future__ import annotations

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.errors import ApiError
from serving.multipart import parse_multipart


def form(*parts: tuple[str, bytes]) -> tuple[bytes, str]:
    """What httpx sends."""
    files = [(name, ("file name.png", content, "image/png")) for name, content in parts]
    request = httpx.Request("POST", "http://test", files=files)
    return request.read(), request.headers["content-type"]


@settings(deadline=None)  # the machine may be busy
@given(
    st.lists(st.tuples(st.sampled_from(["image", "ümläut", "x y"]), st.binary(max_size=300)), min_size=1, max_size=5)
)
def test_parts_arrive_unchanged(parts: list[tuple[str, bytes]]) -> None:
    body, content_type = form(*parts)
    assert [(part.name, bytes(part.content)) for part in parse_multipart(body, content_type, 5)] == parts


@settings(deadline=None)  # the machine may be busy
@given(st.integers(0, 400))
def test_every_cut_is_an_error(cut: int) -> None:
    body, content_type = form(("image", b"0123456789" * 10), ("image", b"\r\n--" * 20))
    body = body.rstrip(b"\r\n")
    with pytest.raises(ApiError) as caught:
        parse_multipart(body[: min(cut, len(body) - 1)], content_type, 5)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    "content_type", ["multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; b"]
)
def test_no_boundary(content_type: str) -> None:
    with pytest.raises(ApiError, match="boundary") as caught:
        parse_multipart(b"--x--", content_type, 5)
    assert caught.value.status == 400


def test_a_content_type_as_long_as_a_head_may_be() -> None:
    body, content_type = form(("image", b"1"))
    longest = f"{content_type}; x=".ljust(1024, ";")
    assert [bytes(part.content) for part in parse_multipart(body, longest, 5)] == [b"1"]
    with pytest.raises(ApiError, match="more than 1024 characters") as caught:
        parse_multipart(body, longest + ";", 5)
    assert caught.value.status == 400


def test_a_wrong_boundary_and_too_many_parts() -> None:
    body, content_type = form(("image", b"1"), ("image", b"2"))
    with pytest.raises(ApiError) as caught:
        parse_multipart(body, "multipart/form-data; boundary=other", 5)
    assert caught.value.status == 400
    with pytest.raises(ApiError) as caught:
        parse_multipart(body, content_type, 1)
    assert caught.value.status == 413


@settings(deadline=None)  # the machine may be busy
@given(st.binary(max_size=300))
def test_any_bytes_are_an_error(body: bytes) -> None:
    with pytest.raises(ApiError):
        parse_multipart(b"--b\r\n" + body, "multipart/form-data; boundary=b", 5)
