"""Connections that misbehave, and a machine that does: the others are served on."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest

from cbn_deploy.runtime.description import Preprocessing
from serving.protocol import SPARE_CONNECTIONS
from tests.onnx_models import colour_model, describe, write_colour_model
from tests.serving.files import BLUE, RED, colour
from tests.serving.server import PROGRAM, ROOT, Server

PATIENCE = 30.0


@pytest.fixture(scope="module")
def patient_server(colours_path: Path) -> Iterator[Server]:
    """One second for a head and a body."""
    running = Server(colours_path, "--threads", 1, "--upload-timeout", 1)
    yield running
    running.stop()


@pytest.fixture(scope="module")
def guarded_server(colours_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Takes the key ``sekret``, and bodies of any size that the defaults allow."""
    keys = tmp_path_factory.mktemp("guarded") / "keys"
    keys.write_text("sekret\n")
    running = Server(colours_path, "--threads", 1, "--api-key-file", keys)
    yield running
    running.stop()


def connect(server: Server, receive_buffer: int | None = None) -> socket.socket:
    address = urlsplit(server.url)
    connection = socket.socket()
    if receive_buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.settimeout(PATIENCE)
    connection.connect((address.hostname, address.port))
    return connection


def head(body: bytes, *lines: str, path: str = "/v1/classify") -> bytes:
    start = (f"POST {path} HTTP/1.1", "Host: x", "Content-Type: image/png", f"Content-Length: {len(body)}")
    return "\r\n".join([*start, *lines, "", ""]).encode()


def chunked(*lines: str, path: str = "/v1/classify") -> bytes:
    """The head of a body in chunks."""
    start = (f"POST {path} HTTP/1.1", "Host: x", "Content-Type: image/png", "Transfer-Encoding: chunked")
    return "\r\n".join([*start, *lines, "", ""]).encode()


def chunks(body: bytes, size: int, extension: bytes = b"") -> bytes:
    """``body`` in chunks of ``size``; the empty one that ends it, and the trailer, are left to the caller."""
    parts = (body[begin : begin + size] for begin in range(0, len(body), size))
    return b"".join(b"%x%b\r\n%b\r\n" % (len(part), extension, part) for part in parts)


def answer(connection: socket.socket) -> tuple[int, bytes]:
    response = http.client.HTTPResponse(connection, method="POST")
    response.begin()
    return response.status, response.read()


def all_until_closed(connection: socket.socket) -> bytes:
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while chunk := connection.recv(65536):
            received += chunk
    return received


def assert_serves(server: Server) -> None:
    response = server.client.post("/v1/classify", files={"image": BLUE})
    assert response.status_code == 200
    assert response.json()["results"][0]["predictions"][0]["label"] == "blue"


def drip(connection: socket.socket, content: bytes) -> bytes:
    """Send byte after byte, until the server has had enough; what it says."""
    with contextlib.suppress(OSError):
        for byte in content:
            connection.sendall(bytes([byte]))
            time.sleep(0.1)
    return all_until_closed(connection)


def test_many_heads_and_bodies_that_trickle(patient_server: Server) -> None:
    """Slowloris: each connection sends something now and then, and none ever ends its request."""
    starts = [b"", b"P", b"POST /v1/classify HTTP/1.1\r\nHost: x\r\n", head(RED), head(RED) + RED[:100]] * 4
    connections = [connect(patient_server) for _ in starts]
    for connection, start in zip(connections, starts, strict=True):
        connection.sendall(start)
    assert_serves(patient_server)
    said = [None] * len(connections)

    def trickle(index: int) -> None:
        said[index] = drip(connections[index], b"X-A: b\r\n" * 100)  # type: ignore[call-overload]

    threads = [threading.Thread(target=trickle, args=(index,)) for index in range(len(connections))]
    for thread in threads:
        thread.start()
    assert_serves(patient_server)
    for thread in threads:
        thread.join()
    for connection, start, text in zip(connections, starts, said, strict=True):
        connection.close()
        assert text is not None
        if start.startswith(head(RED)):
            assert text.startswith(b"HTTP/1.1 408 ") or text == b"", text
        else:
            assert text == b"" or text.startswith(b"HTTP/1.1 400 "), text
    assert_serves(patient_server)


def test_a_reader_that_does_not_read_holds_up_nobody(patient_server: Server) -> None:
    with connect(patient_server, receive_buffer=2048) as connection:
        # Some two megabytes of answers to requests that were sent at once; not one byte of them is read.
        request = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"
        connection.sendall(request * 40)
        for _ in range(5):
            assert_serves(patient_server)
    assert_serves(patient_server)


@pytest.fixture(scope="module")
def answering_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Gives answers of several megabytes, to clients that take some of it every half second."""
    model = colour_model(
        description=describe(preprocessing=Preprocessing(height=64, width=64)), size=64, with_posterior=True
    )
    path = write_colour_model(tmp_path_factory.mktemp("large") / "colours.onnx", model)
    prelude = "import serving.protocol as p; p.BoundedHeadProtocol.stalled_seconds = 0.5"
    running = Server(path, "--threads", 1, "--upload-timeout", 1, prelude=prelude)
    yield running
    running.stop()


def ask_for_much(server: Server, images: int = 32) -> socket.socket:
    """A connection that is to be sent some four megabytes, and whose client's machine takes a few kilobytes."""
    tensor = {"name": "images", "datatype": "FP32", "shape": [images, 3, 64, 64]}
    data = np.random.default_rng(0).random(tensor["shape"], np.float32).tobytes()
    text = json.dumps({"inputs": [{**tensor, "parameters": {"binary_data_size": len(data)}}]}).encode()
    connection = connect(server, receive_buffer=2048)
    line = f"Inference-Header-Content-Length: {len(text)}"
    connection.sendall(head(text + data, line, path="/v2/models/colours/infer") + text + data)
    return connection


def open_connections(server: Server) -> int:
    (found,) = re.findall(r"^cbn_connections (\d+)", server.client.get("/metrics").text, re.MULTILINE)
    return int(found)


def test_an_answer_that_nobody_reads_is_not_kept(answering_server: Server) -> None:
    with ask_for_much(answering_server), connect(answering_server, receive_buffer=2048) as pipelining:
        # Here the next answer waits for the one before to be read.
        pipelining.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 200)
        assert open_connections(answering_server) == 3
        wait_until(lambda: open_connections(answering_server) == 1)


def test_a_reader_that_is_slow_gets_its_answer(answering_server: Server) -> None:
    with ask_for_much(answering_server) as connection:
        begin, received = time.monotonic(), 0
        response = http.client.HTTPResponse(connection, method="POST")
        response.begin()
        while chunk := response.read(2**18):
            received += len(chunk)
            time.sleep(0.1)
        assert received == int(response.headers["Content-Length"]) > 4_000_000
        assert time.monotonic() - begin > 1, "as long as a head may take"


def test_half_open_and_reset_connections(patient_server: Server) -> None:
    silent = [connect(patient_server) for _ in range(50)]
    for _ in range(20):
        connection = connect(patient_server)
        connection.sendall(head(RED) + RED[:50])
        # A reset instead of an end, as when a machine loses power and another takes its address.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
    assert_serves(patient_server)
    # Only the client's sending half is closed: it still wants its answer, or at least an end.
    with connect(patient_server) as connection:
        connection.sendall(head(RED) + RED)
        connection.shutdown(socket.SHUT_WR)
        said = all_until_closed(connection)
        assert said == b"" or said.startswith(b"HTTP/1.1 ")
    for connection in silent:
        assert all_until_closed(connection) == b""  # closed by the server when the time for a head is over
        connection.close()
    assert_serves(patient_server)


def test_requests_one_behind_the_other_are_answered_in_order(patient_server: Server) -> None:
    images = [colour(220, 30, 30), colour(30, 220, 30), colour(30, 30, 220)]
    with connect(patient_server) as connection:
        connection.sendall(b"".join(head(image) + image for image in images))
        connection.sendall(head(RED, "Connection: close") + RED)
        said = all_until_closed(connection)
    assert re.findall(rb'"predictions":\[\{"label":"(\w+)"', said) == [b"red", b"green", b"blue", b"red"]


def test_an_offer_to_upgrade_is_ignored(patient_server: Server) -> None:
    """As curl --http2 makes it; the connection goes on in HTTP/1.1."""
    upgrade = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA")
    with connect(patient_server) as connection:
        for lines in (upgrade, ()):
            connection.sendall(head(RED, *lines) + RED)
            assert answer(connection)[0] == 200


def test_offers_to_upgrade_one_behind_the_other_are_ignored_too(patient_server: Server) -> None:
    offer = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n"
    with connect(patient_server) as connection:
        connection.sendall(offer * 500 + b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert all_until_closed(connection).count(b"HTTP/1.1 200 OK") == 501
    with connect(patient_server) as connection:
        connection.sendall(offer + offer.replace(b"GET /healthz", b"CONNECT x:1"))
        assert re.findall(rb"HTTP/1.1 (\d+)", all_until_closed(connection))[-1] == b"400"


@pytest.mark.parametrize(
    "content",
    [
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
        b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + b"".join(b"X-%d: %d\r\n" % (n, n) for n in range(9000)) + b"\r\n",
        head(b"abc", "Transfer-Encoding: chunked") + b"3\r\nabc\r\n0\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\n folded: y\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost : x\r\n\r\n",
        b"\r\n" * 40_000,
    ],
    ids=["two hosts", "long path", "many headers", "two lengths", "folded", "space before colon", "only line ends"],
)
def test_heads_that_other_servers_may_read_differently(patient_server: Server, content: bytes) -> None:
    with connect(patient_server) as connection:
        connection.sendall(content)
        said, _, body = all_until_closed(connection).partition(b"\r\n\r\n")
        assert said.startswith(b"HTTP/1.1 400 ")
        assert b"application/problem+json" in said
        assert json.loads(body)["status"] == 400
    assert_serves(patient_server)


def test_head_is_get_without_a_body(patient_server: Server) -> None:
    for path in (
        "/healthz",
        "/",
        "/metrics",
        "/v1/models",
        "/v2",
        "/v2/health/ready",
        "/v2/models/colours",
        "/nowhere",
    ):
        full, short = patient_server.client.get(path), patient_server.client.head(path)
        assert (short.status_code, short.content) == (full.status_code, b""), path
        assert short.headers["content-type"] == full.headers["content-type"]
    assert patient_server.client.head("/v1/classify").status_code == 405
    assert 'method="HEAD",route="/healthz",status="200"' in patient_server.client.get("/metrics").text


def test_too_many_connections_are_told_so(start_server: Callable[..., Server], colours_path: Path) -> None:
    server = start_server(colours_path, "--threads", 1, "--max-connections", 4)
    silent = [connect(server) for _ in range(4)]
    for path, kind in (("/v1/models", "application/problem+json"), ("/v2", "application/json")):
        refused = server.client.get(path)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert refused.headers["content-type"] == kind
        assert "connections" in refused.text
    for connection in silent:
        connection.close()
    deadline = time.monotonic() + PATIENCE
    while server.client.get("/v2").status_code != 200:
        assert time.monotonic() < deadline
    # Those that were there before the others came are served on, and the others do not add up.
    wait_until(lambda: open_connections(server) == 1)
    before = connect(server)
    crowd = [connect(server) for _ in range(4 + SPARE_CONNECTIONS + 20)]
    for connection in crowd:
        with contextlib.suppress(OSError):
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Endless: ")
    assert all_until_closed(crowd[-1]) == b""  # not after the ten seconds that a head may take
    before.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    status, metrics = answer(before)
    assert status == 200
    assert f"cbn_connections {4 + SPARE_CONNECTIONS}.0" in metrics.decode()
    for connection in (before, *crowd):
        connection.close()
    assert any(entry["message"] == "too many connections" for entry in server.whole_log())


def test_no_more_connections_than_the_process_may_open_files(
    start_server: Callable[..., Server], colours_path: Path
) -> None:
    limited = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({}, {}))"
    server = start_server(colours_path, "--threads", 1, prelude=limited.format(150, 150))
    (warning,) = [entry for entry in server.log if entry["level"] == "warning"]
    assert "open files" in warning["message"]
    possible = warning["max_connections"]
    assert f"cbn_connections_limit {possible}.0" in server.client.get("/metrics").text
    crowd = [connect(server) for _ in range(200)]
    assert server.client.get("/healthz").status_code == 200
    assert all_until_closed(crowd[-1]) == b""
    for connection in crowd:
        connection.close()
    raised = start_server(colours_path, "--threads", 1, "--max-connections", 200, prelude=limited.format(150, 400))
    assert not [entry for entry in raised.log if entry["level"] == "warning"]
    assert "process_max_fds 296.0" in raised.client.get("/metrics").text


def test_a_head_that_never_ends_is_cut(patient_server: Server) -> None:
    sent = 0
    with connect(patient_server) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Endless: ")
        with contextlib.suppress(OSError):
            while sent < 20_000_000:
                connection.sendall(b"x" * 16_384)
                sent += 16_384
    assert sent < 20_000_000
    assert_serves(patient_server)


@pytest.mark.parametrize(
    "content",
    [
        b"0\r\n" + b"".join(b"x%d: %0100d\r\n" % (n, n) for n in range(10_000)),
        b"0\r\nx: " + b"y" * 1_000_000,
        b"1;x=" + b"y" * 1_000_000,
    ],
    ids=["many trailers", "one trailer", "one extension"],
)
def test_a_body_that_never_ends_and_has_no_content_is_cut(guarded_server: Server, content: bytes) -> None:
    with connect(guarded_server) as connection:
        connection.sendall(chunked("X-API-Key: sekret") + chunks(RED, 100))
        with contextlib.suppress(OSError):
            connection.sendall(content)
        assert all_until_closed(connection).startswith(b"HTTP/1.1 400 ")
    assert guarded_server.client.get("/healthz").status_code == 200


def test_a_trailer_is_dropped(guarded_server: Server) -> None:
    """It must not say what a proxy, or the server itself, reads from the head."""
    with connect(guarded_server) as connection:
        for lines, status in (((), 401), (("X-API-Key: sekret",), 200)):
            connection.sendall(chunked(*lines) + chunks(RED, 100) + b"0\r\nX-API-Key: sekret\r\nX-Other: y\r\n\r\n")
            assert answer(connection)[0] == status
    with connect(guarded_server) as connection:  # however much there is, it is counted for each request by itself
        trailer = b"0\r\nx: " + b"y" * 40_000 + b"\r\n\r\n"
        for _ in range(3):
            connection.sendall(chunked("X-API-Key: sekret") + chunks(RED, 100) + trailer)
            assert answer(connection)[0] == 200
        connection.sendall(chunked("X-API-Key: sekret") + chunks(RED, 100) + trailer.replace(b"y", b"yy"))
        assert answer(connection)[0] == 400


def test_large_bodies_however_they_are_framed(guarded_server: Server) -> None:
    """What a body has beside its content is bounded between two pieces of content, not in all."""
    large, end = colour(220, 30, 30, "BMP", side=1500), b"0\r\n\r\n"
    assert len(large) > 6_000_000
    key = "X-API-Key: sekret"
    requests = [
        head(large, key) + large,
        chunked(key) + chunks(large, len(large)) + end,
        chunked(key) + chunks(large, 10_000, b";x=" + b"y" * 1000) + end,
        chunked(key) + chunks(RED, 1, b";x=" + b"y" * 1000) + end,
    ]
    with connect(guarded_server) as connection:
        for request in requests:
            connection.sendall(request)
            status, text = answer(connection)
            assert (status, b'"label":"red"' in text) == (200, True), text
    with connect(guarded_server) as connection:  # one behind the other
        last = head(RED, key, "Connection: close") + RED
        sender = threading.Thread(target=connection.sendall, args=(b"".join([*requests, last]),))
        sender.start()
        said = all_until_closed(connection)
        sender.join()
    assert said.count(b'"predictions":[{"label":"red"') == len(requests) + 1


def test_a_full_disk_behind_the_log(colours_path: Path) -> None:
    """Standard error that takes nothing more costs log lines, not answers."""
    with Path("/dev/full").open("w") as full, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()

        command = [sys.executable, "-c", PROGRAM, str(colours_path), "--port", str(port), "--threads", "1"]
        process = subprocess.Popen(command, cwd=ROOT, stderr=full)
        try:
            url = f"http://127.0.0.1:{port}"
            deadline = time.monotonic() + 60
            with httpx.Client(base_url=url, trust_env=False, timeout=PATIENCE) as client:
                while True:
                    assert process.poll() is None
                    assert time.monotonic() < deadline
                    with contextlib.suppress(httpx.HTTPError):
                        if client.get("/v2/health/ready").status_code == 200:
                            break
                    time.sleep(0.1)
                for _ in range(10):
                    assert client.post("/v1/classify", files={"image": RED}).status_code == 200
                assert client.post("/v1/classify", content=b"x").status_code == 415
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=PATIENCE) in (0, 120)  # 120: Python could not flush its standard error
        finally:
            process.kill()
            process.wait()


def test_kills_under_load_lose_nothing_for_clients_that_try_again(
    start_server: Callable[..., Server], colours_path: Path
) -> None:
    server = start_server(colours_path, "--threads", 1)
    url, port = server.url, urlsplit(server.url).port
    stop, wrong, right = threading.Event(), [], []

    def ask(image: bytes, label: str) -> None:
        with httpx.Client(base_url=url, trust_env=False, timeout=PATIENCE) as client:
            while not stop.is_set():
                deadline = time.monotonic() + 60
                while time.monotonic() < deadline:
                    try:
                        response = client.post("/v1/classify", files={"image": image})
                    except httpx.HTTPError:
                        time.sleep(0.1)
                        continue
                    ok = response.status_code == 200
                    found = response.json()["results"][0]["predictions"][0]["label"] if ok else response.text
                    (right if found == label else wrong).append(found)
                    break
                else:
                    wrong.append("lost")

    clients = [threading.Thread(target=ask, args=case) for case in ((RED, "red"), (BLUE, "blue")) * 2]
    for client in clients:
        client.start()
    try:
        for _ in range(2):
            wait_until(lambda seen=len(right): len(right) > seen + 10)  # type: ignore[misc]
            server.process.kill()
            server.stop()
            server = start_server(colours_path, "--threads", 1, "--port", port)
        wait_until(lambda seen=len(right): len(right) > seen + 10)  # type: ignore[misc]
    finally:
        stop.set()
        for client in clients:
            client.join()
    assert not wrong


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)
