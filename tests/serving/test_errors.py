"""Bad requests of every kind against a real server: the right status, one sentence, and the server lives on."""

from __future__ import annotations

import http.client
import io
import json
import socket
import time
import zlib
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.serving.files import RED, bomb_png, colour, encode
from tests.serving.server import Server

JPEG = colour(220, 30, 30, "JPEG", side=64)
PNG_BODY = {"Content-Type": "image/png"}


def hundred_megapixels() -> bytes:
    """A valid PNG of 10,000 x 10,000 black pixels in some 12 kB."""
    buffer = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(buffer, "PNG")
    return buffer.getvalue()


def damaged_png() -> bytes:
    """The pixels' zlib stream has a flipped byte in the middle."""
    noise = encode(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    return noise[:6000] + bytes([noise[6000] ^ 0xFF]) + noise[6001:]


@pytest.fixture(autouse=True)
def still_alive(server: Server) -> Iterator[None]:
    """Whatever a test has sent, the next good request is answered."""
    yield
    assert server.process.poll() is None
    assert server.client.post("/v1/classify", files={"image": RED}).status_code == 200


def assert_problem(response: httpx.Response, status: int) -> str:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert set(problem) == {"type", "title", "status", "detail", "request_id"}
    assert problem["status"] == status
    assert problem["request_id"] == response.headers["x-request-id"]
    assert problem["detail"].endswith(".")
    assert not any(word in response.text for word in ("Traceback", ".py", "Error("))
    return str(problem["detail"])


@pytest.mark.parametrize(
    ("content", "status", "says"),
    [
        (b"", 422, "0 bytes"),
        (b"hello, this is not an image", 415, "JPEG, PNG, WebP or BMP"),
        (b"\x00" * 5000, 415, "JPEG, PNG, WebP or BMP"),
        (RED[:8], 422, "truncated or damaged"),
        (RED[: len(RED) // 2], 422, "truncated or damaged"),
        (JPEG[: len(JPEG) // 2], 422, "truncated or damaged"),
        (JPEG[:20], 422, "truncated or damaged"),
        (colour(1, 2, 3, "BMP")[:500], 422, "truncated or damaged"),
        (damaged_png(), 422, "truncated or damaged"),
        (bomb_png(50_000, 50_000), 413, "pixels"),
        (bomb_png(2_000_000_000, 2_000_000_000), 413, "pixels"),
        (bomb_png(0, 10), 422, "truncated or damaged"),
        (hundred_megapixels(), 413, "pixels"),
        (encode(np.zeros((101, 100, 3), np.uint8)), 413, "10000"),
        (encode(np.zeros((16, 16, 3), np.uint8), "GIF"), 415, "JPEG, PNG, WebP or BMP"),
        (encode(np.zeros((16, 16, 3), np.uint8), "TIFF"), 415, "JPEG, PNG, WebP or BMP"),
        (b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', 415, "JPEG, PNG, WebP or BMP"),
        (b"%PDF-1.7 not really", 415, "JPEG, PNG, WebP or BMP"),
        (b"x" * 100_001, 413, "100000 bytes"),
    ],
)
def test_bad_images(server: Server, content: bytes, status: int, says: str) -> None:
    raw = server.client.post("/v1/classify", content=content, headers=PNG_BODY)
    assert says in assert_problem(raw, status)
    form = server.client.post("/v1/classify", files={"image": content})
    assert says in assert_problem(form, status)


def test_the_bad_one_of_several_is_named(server: Server) -> None:
    files = [("image", RED), ("image", RED[:200]), ("image", RED)]
    assert assert_problem(server.client.post("/v1/classify", files=files), 422).startswith("Image 2 of 3: ")


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Content-Type": ""},
        {"Content-Type": "application/json"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "text/plain"},
        {"Content-Type": "nonsense"},
        {"Content-Type": "image/png", "Content-Encoding": "gzip"},
    ],
)
def test_wrong_media_types(server: Server, headers: dict[str, str]) -> None:
    assert_problem(server.client.post("/v1/classify", content=zlib.compress(RED), headers=headers), 415)


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("multipart/form-data", b"--b\r\n"),
        ("multipart/form-data; boundary=", b"--b\r\n"),
        ("multipart/form-data; boundary=b", b""),
        ("multipart/form-data; boundary=b", b"no boundary here"),
        ("multipart/form-data; boundary=b", b'--b\r\nContent-Disposition: form-data; name="image"\r\n\r\n' + RED),
        ("multipart/form-data; boundary=b", b"--b\r\nbroken header\r\n\r\nx\r\n--b--"),
        ("multipart/form-data; boundary=" + "b" * 5000, b"--b--"),
        ("multipart/form-data; boundary=b", b"\r" * 90_000),
    ],
)
def test_malformed_forms(server: Server, content_type: str, body: bytes) -> None:
    response = server.client.post("/v1/classify", content=body, headers={"Content-Type": content_type})
    assert_problem(response, 400)


def test_forms_with_the_wrong_fields(server: Server) -> None:
    assert "'file'" in assert_problem(server.client.post("/v1/classify", files={"file": RED}), 422)
    mixed = server.client.post("/v1/classify", files={"image": RED}, data={"top_k": "2"})
    assert "'top_k'" in assert_problem(mixed, 422)
    nameless = b"--b\r\nContent-Type: image/png\r\n\r\nx\r\n--b--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    assert_problem(server.client.post("/v1/classify", content=nameless, headers=headers), 422)
    empty = b"--b--\r\n"
    response = server.client.post("/v1/classify", content=empty, headers=headers)
    assert response.status_code in (400, 422)
    assert_problem(response, response.status_code)


def test_too_many_images(server: Server) -> None:
    assert server.client.post("/v1/classify", files=[("image", RED)] * 4).status_code == 200
    assert_problem(server.client.post("/v1/classify", files=[("image", RED)] * 5), 413)


@pytest.mark.parametrize(
    "query",
    [
        "top_k=NaN",
        "top_k=-1",
        "top_k=0",
        "top_k=1.5",
        "top_k=",
        "top_k=five",
        "top_k=" + "9" * 5000,
        "topk=3",
        "prior=",
        "prior=balanced",
        "prior={",
        'prior={"red":NaN}',
        'prior={"red":2}',
        'prior={"cat":1}',
        "prior=" + "[" * 3000,
        "prior=%ff%fe",
        "reject=",
        "reject=maybe",
        "reject=0",
        "reject=0.0",
        "reject=0.51",
        "reject=-0.1",
        "reject=1",
        "reject=nan",
        "reject=1e-3",
        "reject=true",
        "reject=0.05",
        "explain=maybe",
        "explain=true",
    ],
)
def test_bad_parameters(server: Server, query: str) -> None:
    assert_problem(server.client.post(f"/v1/classify?{query}", files={"image": RED}), 422)


def test_what_makes_a_model_reject(server: Server) -> None:
    """Exporting it in the same way once more would not."""
    detail = assert_problem(server.client.post("/v1/classify?reject=0.1", files={"image": RED}), 422)
    assert "with --data DIR and at least 20 test images" in detail


def test_an_unknown_model(server: Server) -> None:
    assert "'cats'" in assert_problem(server.client.post("/v1/classify?model=cats", files={"image": RED}), 404)
    assert_problem(server.client.post("/v1/classify?model=" + "x" * 5000, files={"image": RED}), 404)


@pytest.mark.parametrize("path", ["/nowhere", "/v1", "/v1/classify/", "/v3/models", "/..%2f..%2fetc/passwd", "/v1/%00"])
def test_unknown_paths(server: Server, path: str) -> None:
    assert_problem(server.client.get(path), 404)


@pytest.mark.parametrize(("method", "path", "allow"), [("GET", "/v1/classify", "POST"), ("PUT", "/healthz", "GET")])
def test_wrong_methods(server: Server, method: str, path: str, allow: str) -> None:
    response = server.client.request(method, path)
    assert_problem(response, 405)
    assert response.headers["allow"] == allow


def test_a_body_without_a_length_is_bounded_while_it_arrives(server: Server) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(50):
            yield b"x" * 10_000

    assert_problem(server.client.post("/v1/classify", content=endless(), headers=PNG_BODY), 413)
    assert server.client.post("/v1/classify", content=iter([RED[:50], RED[50:]]), headers=PNG_BODY).status_code == 200


def connect(server: Server) -> socket.socket:
    address = urlsplit(server.url)
    return socket.create_connection((address.hostname, address.port), timeout=20)


def read_response(connection: socket.socket) -> tuple[int, bytes]:
    with http.client.HTTPResponse(connection) as response:
        response.begin()
        return response.status, response.read()


def head(*lines: str) -> bytes:
    return "\r\n".join(["POST /v1/classify HTTP/1.1", "Host: x", "Content-Type: image/png", *lines, "", ""]).encode()


def test_a_declared_length_over_the_limit_is_refused_unread(server: Server) -> None:
    for length in ("999999999999", "100001"):
        with connect(server) as connection:
            connection.sendall(head(f"Content-Length: {length}"))
            status, body = read_response(connection)
        assert (status, json.loads(body)["status"]) == (413, 413)


def test_a_body_shorter_than_declared(server: Server) -> None:
    with connect(server) as connection:
        connection.sendall(head("Content-Length: 5000") + RED[:100])
        connection.shutdown(socket.SHUT_WR)
        answer = connection.recv(4096)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 400 ")


def test_a_slow_body_gets_408_and_a_slow_head_is_closed(server: Server) -> None:
    with connect(server) as connection:
        connection.sendall(head("Content-Length: 5000") + RED[:100])
        started = time.monotonic()
        status, body = read_response(connection)
    assert (status, json.loads(body)["status"]) == (408, 408)
    assert 0.9 < time.monotonic() - started < 15
    with connect(server) as connection:
        connection.sendall(b"POST /v1/classify HTTP/1.1\r\nHost: x\r\n")
        started = time.monotonic()
        assert connection.recv(1000) == b""
    assert 0.9 < time.monotonic() - started < 15


@pytest.mark.parametrize(
    "content",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # a TLS client
        b"GET\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\n\r\n",  # no Host
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Big: " + b"x" * 200_000 + b"\r\n\r\n",
        head("Content-Length: -5"),
        head("Content-Length: 5", "Content-Length: 6"),
        head("Transfer-Encoding: chunked") + b"zz\r\nnot hex\r\n",
    ],
)
def test_what_is_not_http_gets_400(server: Server, content: bytes) -> None:
    with connect(server) as connection:
        connection.sendall(content)
        # One read: after the answer the server may reset a connection that is still sending.
        answer = connection.recv(4096)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"Traceback" not in answer
