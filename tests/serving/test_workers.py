"""``cbn-serve --workers 2``: real processes that share a port, and are one server to whoever asks."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from cbn_deploy.runtime.factory import available_cpus
from tests.onnx_models import COLOURS, colour_model, spin_for, write_colour_model
from tests.serving.files import BLUE, GREEN, RED
from tests.serving.server import PROGRAM, ROOT, Server
from tests.serving.test_cli import assert_one_sentence, run
from tests.serving.test_reload import eventually

FILES = dict(zip(COLOURS, (RED, GREEN, BLUE), strict=True))
PATIENCE = 60.0
WORKERS = {"0", "1"}
CERTIFICATES = ssl.create_default_context()  # read once; each client would read them anew


@pytest.fixture(scope="module")
def pair(colours_path: Path) -> Iterator[Server]:
    """Two workers; the colour model twice, as ``tints`` and ``hues``."""
    running = Server(f"tints={colours_path}", f"hues={colours_path}", "--workers", 2)
    yield running
    running.stop()


def ask(server: Server, colour: str = "red", model: str = "tints") -> httpx.Response:
    """On a connection of its own."""
    return httpx.post(
        f"{server.url}/v1/classify",
        params={"model": model},
        files={"image": FILES[colour]},
        timeout=PATIENCE,
        trust_env=False,
        verify=CERTIFICATES,
    )


def label(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    found: str = response.json()["results"][0]["predictions"][0]["label"]
    return found


def by_worker(server: Server, name: str, **labels: str) -> dict[str, float]:
    """Worker -> sum of the samples called ``name`` that have these labels."""
    text = httpx.get(f"{server.url}/metrics", timeout=PATIENCE, trust_env=False, verify=CERTIFICATES).text
    found: Counter[str] = Counter()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                found[sample.labels["worker"]] += sample.value
    return dict(found)


def answered(server: Server) -> dict[str, float]:
    return by_worker(server, "cbn_requests_total", route="/v1/classify", status="200")


def pids(server: Server) -> dict[int, int]:
    """Worker -> its process, as logged last."""
    return {entry["worker"]: entry["pid"] for entry in server.log if entry["message"] == "worker ready"}


def test_both_answer_and_counts_are_those_of_both(pair: Server) -> None:
    clients, requests = 8, 12
    gate = threading.Barrier(clients)

    def classify(number: int) -> bool:
        with httpx.Client(base_url=pair.url, timeout=PATIENCE, trust_env=False, verify=CERTIFICATES) as client:
            client.get("/healthz")
            gate.wait()  # all connections are open at once
            asked = [COLOURS[(number + turn) % 3] for turn in range(requests)]
            posts = (client.post("/v1/classify?model=tints", files={"image": FILES[colour]}) for colour in asked)
            return [label(post) for post in posts] == asked

    with ThreadPoolExecutor(clients) as pool:
        assert all(pool.map(classify, range(clients)))
    found = answered(pair)
    assert sum(found.values()) == clients * requests
    # Connections are dealt evenly, and every client sent the same; one more may have been open.
    assert min(found["0"], found["1"]) >= (clients / 2 - 1) * requests
    (tints,) = httpx.get(f"{pair.url}/v2/models/tints/stats", trust_env=False).json()["model_stats"]
    assert tints["inference_count"] == tints["inference_stats"]["success"]["count"] == clients * requests
    assert (
        sum(size["batch_size"] * size["compute_infer"]["count"] for size in tints["batch_stats"]) == clients * requests
    )
    assert by_worker(pair, "cbn_workers") == dict.fromkeys(WORKERS, 2)
    assert set(by_worker(pair, "process_resident_memory_bytes")) == WORKERS
    text = httpx.get(f"{pair.url}/metrics", trust_env=False).text
    described = [line for line in text.splitlines() if line.startswith("# HELP ")]
    assert len(described) == len(set(described))


def test_the_cpus_are_shared_out(pair: Server) -> None:
    threads = {model["threads"] for model in pair.client.get("/v1/models").json()["models"]}
    assert threads == {max(1, available_cpus() // 2)}


def test_a_worker_that_is_killed_under_load_comes_back_as_it_was(pair: Server) -> None:
    control = f"{pair.url}/v2/repository/models"
    assert httpx.post(f"{control}/hues/unload", timeout=PATIENCE, trust_env=False).status_code == 200
    assert {ask(pair, model="hues").is_success for _ in range(4)} == {False}  # connections go to either in turn
    assert httpx.post(f"{control}/none/unload", trust_env=False).status_code == 404
    wrong: list[str] = []
    right: Counter[str] = Counter()
    done = threading.Event()

    def classify(colour: str) -> None:
        while not done.is_set():
            try:
                response = ask(pair, colour)
            except httpx.TransportError:
                continue  # it was in the hands of the worker that was killed
            if response.status_code == 200 and label(response) == colour:
                right[colour] += 1
            else:
                wrong.append(response.text)

    threads = [threading.Thread(target=classify, args=(COLOURS[number % 3],)) for number in range(3)]
    for thread in threads:
        thread.start()
    eventually(lambda: sum(right.values()) > 10)
    killed = pids(pair)[1]
    os.kill(killed, signal.SIGKILL)
    ended = pair.wait_for_log("worker ended")
    back = pair.wait_for_log("worker ready")
    before = sum(right.values())
    eventually(lambda: sum(right.values()) > before + 10)
    done.set()
    for thread in threads:
        thread.join()
    assert not wrong
    assert (ended["worker"], ended["pid"], ended["exit_code"]) == (1, killed, -signal.SIGKILL)
    assert (back["worker"], back["pid"] != killed) == (1, True)
    eventually(lambda: set(answered(pair)) == WORKERS)
    assert by_worker(pair, "cbn_worker_restarts_total") == {"0": 0, "1": 1}
    # What a client had unloaded is still away, in the new worker too, and comes back in both.
    assert {ask(pair, model="hues").is_success for _ in range(4)} == {False}
    assert httpx.post(f"{control}/hues/load", timeout=PATIENCE, trust_env=False).status_code == 200
    assert [label(ask(pair, model="hues")) for _ in range(4)] == ["red"] * 4
    assert not [entry for entry in pair.log if entry["level"] == "error" and entry["message"] != "worker ended"]


def test_log_lines_say_which_worker(pair: Server) -> None:
    seen: set[int] = set()
    with contextlib.ExitStack() as stack:
        # All stay open: one after the other, they could all go to the worker that has one connection less.
        for _ in range(12):
            client = stack.enter_context(httpx.Client(base_url=pair.url, timeout=PATIENCE, trust_env=False))
            request_id = client.get("/v1/models").headers["x-request-id"]
            while (entry := pair.wait_for_log("request"))["request_id"] != request_id:
                pass  # the server is shared: lines of the tests before may stand first
            seen.add(entry["worker"])
    assert seen == {0, 1}


def test_a_signal_lets_requests_finish(start_server: Callable[..., Server], tmp_path: Path) -> None:
    slow = write_colour_model(tmp_path / "slow.onnx", colour_model(spin=spin_for(0.5)))
    server = start_server(slow, "--workers", 2, "--max-batch", 1)
    with ThreadPoolExecutor(max_workers=2) as pool:
        in_flight = [pool.submit(ask, server, model="slow") for _ in range(2)]
        eventually(lambda: sum(by_worker(server, "cbn_requests_admitted").values()) == 2)
        server.process.send_signal(signal.SIGTERM)
        assert [label(future.result()) for future in in_flight] == ["red", "red"]
    assert server.process.wait(timeout=PATIENCE) == 0
    server.wait_for_the_last_process()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server.url}/healthz", trust_env=False)
    assert not [entry for entry in server.whole_log() if entry["level"] in ("warning", "error", "critical")]
    assert {entry.get("worker") for entry in server.log if entry["message"] == "Shutting down"} == {0, 1}


def test_models_that_cannot_be_served(tmp_path: Path, colours_path: Path) -> None:
    broken = write_colour_model(tmp_path / "nan.onnx", colour_model(broken_weight=float("nan")))
    done = run(colours_path, broken, "--workers", 2, "--port", 0)
    assert_one_sentence(done, "finite")


def test_a_worker_that_ends_while_another_still_loads(colours_path: Path) -> None:
    """Worker 1 is stopped as soon as it is there, so that the port is never opened."""
    stopping = """
import os, signal, serving.workers.life as life
class Life(life.WorkerLife):
    def __init__(self, number, *others, **named):
        super().__init__(number, *others, **named)
        if number == 1:
            os.kill(self.pid, signal.SIGSTOP)
import serving.workers.supervisor as supervisor
supervisor.WorkerLife = Life
"""
    command = [sys.executable, "-c", f"{stopping}\n{PROGRAM}", str(colours_path), "--workers", "2", "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        ready = next(entry for entry in map(json.loads, process.stderr) if entry["message"] == "worker ready")
        assert ready["worker"] == 0
        os.kill(ready["pid"], signal.SIGKILL)
        said = process.stderr.read()
    assert said == "Error: Worker 0 ended with -9 before the port was open; see its log above.\n"
    assert process.returncode == 2


def test_a_server_with_tls_and_keys_that_is_killed_leaves_no_process(
    start_server: Callable[..., Server], colours_path: Path, tmp_path: Path
) -> None:
    pytest.importorskip("cryptography", reason="cryptography is not installed")
    from tests.serving.test_tls import certificate, trusting

    cert, key = certificate(tmp_path, "one")
    (tmp_path / "keys").write_text("the-key\n")
    secured = ("--tls-cert", cert, "--tls-key", key, "--api-key-file", tmp_path / "keys")
    server = start_server(colours_path, "--workers", 2, *secured)
    for _ in range(4):
        with httpx.Client(base_url=server.url, verify=trusting(cert), timeout=PATIENCE, trust_env=False) as client:
            assert client.get("/v1/models").status_code == 401
            answer = client.post("/v1/classify", files={"image": GREEN}, headers={"X-API-Key": "the-key"})
            assert label(answer) == "green"
    with httpx.Client(base_url=server.url, timeout=PATIENCE, trust_env=False) as stranger:
        for _ in range(4):
            with pytest.raises(httpx.ConnectError):
                stranger.get("/healthz")
    server.process.kill()
    server.wait_for_the_last_process()


def test_a_worker_that_is_stuck_is_left_out_and_replaced(
    start_server: Callable[..., Server], colours_path: Path
) -> None:
    impatient = "import serving.workers.supervisor as s; s._PING_SECONDS, s._STUCK_SECONDS = 0.2, 3.0"
    server = start_server(colours_path, "--workers", 2, prelude=impatient)
    stopped = pids(server)[0]
    os.kill(stopped, signal.SIGSTOP)
    started = time.monotonic()
    with httpx.Client(base_url=server.url, timeout=PATIENCE, trust_env=False) as client:
        # A connection may have been dealt to the worker that is stuck; then it is lost when that is killed.
        try:
            found = client.get("/metrics").text
        except httpx.TransportError:
            found = client.get("/metrics").text
    assert 'cbn_ready{worker="1"} 1.0' in found
    assert server.wait_for_log("worker is stuck")["worker"] == 0
    assert server.wait_for_log("worker ended")["pid"] == stopped
    assert server.wait_for_log("worker ready")["worker"] == 0
    assert time.monotonic() - started > 2
    assert label(ask(server, model="colours")) == "red"
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(timeout=PATIENCE) == 130
