"""A model that takes its time: full queues, timeouts, a busy machine, and the end of the server."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.serving.files import RED
from tests.serving.server import Server
from tests.serving.test_errors import assert_problem

PATIENCE = 30.0


def post(server: Server, pool: ThreadPoolExecutor) -> Future[httpx.Response]:
    return pool.submit(httpx.post, f"{server.url}/v1/classify", files={"image": RED}, timeout=60.0, trust_env=False)


def wait_until_in_flight(server: Server, count: int) -> None:
    """Until the server itself says so; the scrape that asks counts as one."""
    deadline = time.monotonic() + 20
    while f"cbn_requests_in_flight {count + 1}.0" not in server.client.get("/metrics").text:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_full_server_says_when_to_come_back(start_server: Callable[..., Server], slow_path: Path) -> None:
    server = start_server(slow_path, "--threads", 1, "--max-queue", 2, "--max-batch", 1)
    with ThreadPoolExecutor(max_workers=2) as pool:
        admitted = [post(server, pool) for _ in range(2)]
        wait_until_in_flight(server, 2)
        started = time.monotonic()
        refused = server.client.post("/v1/classify", files={"image": RED})
        assert time.monotonic() - started < 1.0
        assert_problem(refused, 503)
        assert int(refused.headers["retry-after"]) >= 1
        # The event loop is free although both the model and the queue are not.
        started = time.monotonic()
        assert server.client.get("/healthz").status_code == 200
        assert time.monotonic() - started < 1.0
        answers = [future.result() for future in admitted]
    assert [answer.status_code for answer in answers] == [200, 200]
    timings = sorted((answer.json()["timing"] for answer in answers), key=lambda timing: timing["queue_ms"])
    # One runs at a time, so the second waits about as long as the first runs.
    assert timings[0]["queue_ms"] < timings[0]["inference_ms"] / 2
    assert timings[1]["queue_ms"] > timings[0]["inference_ms"] / 2
    assert server.client.post("/v1/classify", files={"image": RED}).status_code == 200


def test_a_late_answer_is_a_504(start_server: Callable[..., Server], slow_path: Path) -> None:
    server = start_server(slow_path, "--threads", 1, "--timeout", 0.1)
    started = time.monotonic()
    with ThreadPoolExecutor(max_workers=4) as pool:
        for answer in [future.result() for future in [post(server, pool) for _ in range(4)]]:
            assert "0.1 seconds" in assert_problem(answer, 504)
    # Those that timed out while waiting were dropped: they do not keep the model busy now.
    assert server.terminate() == 0
    assert time.monotonic() - started < 10


def test_requests_that_wait_run_together(start_server: Callable[..., Server], slow_path: Path) -> None:
    server = start_server(slow_path, "--threads", 1, "--max-batch", 3)
    with ThreadPoolExecutor(max_workers=5) as pool:
        first = post(server, pool)
        wait_until_in_flight(server, 1)
        others = [post(server, pool) for _ in range(4)]
        wait_until_in_flight(server, 5)
        assert first.result().status_code == 200
        assert [future.result().status_code for future in others] == [200] * 4
    assert batches(server) == {1: 2, 3: 1}


def batches(server: Server) -> dict[int, int]:
    """Images of a batch -> batches of that size."""
    (model,) = server.client.get("/v2/models/slow/stats").json()["model_stats"]
    return {entry["batch_size"]: entry["compute_infer"]["count"] for entry in model["batch_stats"]}


def test_a_client_may_allow_less_time_than_the_server(start_server: Callable[..., Server], slow_path: Path) -> None:
    server = start_server(slow_path, "--threads", 1)

    def ask(timeout: object) -> httpx.Response:
        return server.client.post("/v1/classify", params={"timeout": str(timeout)}, files={"image": RED})

    assert "0.1 seconds" in assert_problem(ask(0.1), 504)
    assert ask(1e6).status_code == 200  # the server's own limit holds
    for bad in (0, -1, "nan", "inf", "soon"):
        assert "timeout" in assert_problem(ask(bad), 422)


def test_a_client_that_has_gone_is_not_served(start_server: Callable[..., Server], slow_path: Path) -> None:
    server = start_server(slow_path, "--threads", 1, "--max-batch", 1)
    with ThreadPoolExecutor(max_workers=1) as pool:
        first = post(server, pool)
        wait_until_in_flight(server, 1)
        gone = [connect_and_post(server) for _ in range(3)]
        wait_until_in_flight(server, 4)
        for connection in gone:
            connection.close()
        wait_until_in_flight(server, 1)
        assert first.result().status_code == 200
    assert server.client.post("/v1/classify", files={"image": RED}).status_code == 200
    assert batches(server) == {1: 2}
    server.client.close()
    server.terminate()
    assert sum(line.get("status") == 499 for line in server.whole_log()) == 3


def connect_and_post(server: Server) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)))
    head = f"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: {len(RED)}\r\n\r\n"
    connection.sendall(head.encode() + RED)
    return connection


def test_a_drain_tells_load_balancers_first(start_server: Callable[..., Server], slow_path: Path) -> None:
    server = start_server(slow_path, "--threads", 1, "--drain-delay", 600)
    assert server.client.get("/v2/health/ready").status_code == 200
    with ThreadPoolExecutor(max_workers=2) as pool:
        before = post(server, pool)
        wait_until_in_flight(server, 1)
        server.process.send_signal(signal.SIGTERM)
        server.wait_for_log("draining")
        refused = server.client.get("/v2/health/ready")
        assert (refused.status_code, refused.headers["connection"]) == (503, "close")
        assert "shutting down" in refused.json()["error"]
        assert server.client.get("/v2/health/live").status_code == 200
        during = post(server, pool)
        assert (during.result().status_code, during.result().headers["connection"]) == (200, "close")
        assert before.result().status_code == 200
    server.process.send_signal(signal.SIGTERM)  # a second signal ends the delay
    assert server.process.wait(timeout=30) == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server.url}/healthz", trust_env=False)


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_requests_finish(
    start_server: Callable[..., Server], slow_path: Path, sent: signal.Signals
) -> None:
    server = start_server(slow_path, "--threads", 1)
    with ThreadPoolExecutor(max_workers=2) as pool:
        in_flight = [post(server, pool) for _ in range(2)]
        wait_until_in_flight(server, 2)
        server.process.send_signal(sent)
        time.sleep(0.3)
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{server.url}/healthz", trust_env=False)
        assert [future.result().status_code for future in in_flight] == [200, 200]
    assert server.process.wait(timeout=30) == {signal.SIGTERM: 0, signal.SIGINT: 130}[sent]
    server.stop()
    assert not any(entry["level"] in ("error", "critical") for entry in server.log)


def test_a_drain_has_an_end(start_server: Callable[..., Server], slow_path: Path) -> None:
    server = start_server(slow_path, "--threads", 1, "--drain-timeout", 1, "--upload-timeout", 60)
    body_sent, server_ended = threading.Event(), threading.Event()

    def drip() -> None:
        def chunks() -> object:
            yield RED[:10]
            body_sent.set()
            server_ended.wait(timeout=20)
            yield RED[10:]

        with pytest.raises(httpx.HTTPError):
            httpx.post(
                f"{server.url}/v1/classify",
                content=chunks(),  # type: ignore[arg-type]
                headers={"Content-Type": "image/png"},
                timeout=20.0,
                trust_env=False,
            ).raise_for_status()

    with ThreadPoolExecutor(max_workers=1) as pool:
        client = pool.submit(drip)
        assert body_sent.wait(timeout=20)
        wait_until_in_flight(server, 1)
        started = time.monotonic()
        assert server.terminate() == 0
        assert time.monotonic() - started < 6
        server_ended.set()
        client.result()


@pytest.mark.parametrize("stuck", ["serving.images.decode_image", "serving.batching._predict"])
def test_a_drain_does_not_wait_for_what_it_has_given_up(
    start_server: Callable[..., Server], colours_path: Path, stuck: str
) -> None:
    """Neither for an image that is being decoded, nor for a batch that runs."""
    module, _, name = stuck.rpartition(".")
    prelude = f"import time, {module} as m; m.{name} = lambda *_: time.sleep({3 * PATIENCE})"
    server = start_server(colours_path, "--threads", 1, "--drain-timeout", 1, prelude=prelude)
    with ThreadPoolExecutor(max_workers=1) as pool:
        cut_off = post(server, pool)
        wait_until_in_flight(server, 1)
        server.client.close()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=PATIENCE) == 0
        with pytest.raises(httpx.HTTPError):
            cut_off.result().raise_for_status()
    # The log is written to its end all the same.
    assert any(entry["message"].startswith("Finished server process") for entry in server.whole_log())
