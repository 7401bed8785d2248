"""A real server whose models are replaced, damaged and removed while clients ask."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.onnx_models import COLOURS, colour_model, describe
from tests.serving.files import BLUE, GREEN, RED
from tests.serving.server import PROGRAM, ROOT, Server

RELOADS = 20
CLIENTS = 4
PATIENCE = 60.0
FILES = dict(zip(COLOURS, (RED, GREEN, BLUE), strict=True))
WATCH = ("--threads", 1, "--watch-interval", 0.02)


def publish(path: Path, mark: str) -> None:
    names = tuple(f"{colour} {mark}" for colour in COLOURS)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.new")
    beside.write_bytes(colour_model(description=describe(class_names=names)).SerializeToString())
    beside.replace(path)


def eventually(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def label(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    found: str = response.json()["results"][0]["predictions"][0]["label"]
    return found


class Clients:
    """Threads that ask for one colour after another until they are stopped, and note every answer."""

    def __init__(self, url: str, check: Callable[[dict[str, Any], str, str], bool]) -> None:
        self.answers: Counter[str] = Counter()
        self.failures: list[str] = []
        self._stop, self._check, self._url = threading.Event(), check, url
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(CLIENTS)]

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, number: int) -> None:
        with httpx.Client(base_url=self._url, timeout=PATIENCE, trust_env=False) as client:
            while not self._stop.is_set():
                colour = COLOURS[number % 3]
                number += 1
                try:
                    response = client.post("/v1/classify", files={"image": FILES[colour]})
                    body = response.json()
                    found, mark = label(response).split()
                    if found == colour and self._check(body, found, mark):
                        self.answers[mark] += 1
                    else:
                        self.failures.append(response.text)
                except (AssertionError, httpx.HTTPError) as error:
                    self.failures.append(repr(error))


def test_reloads_under_load_lose_and_mix_up_nothing(start_server: Callable[..., Server], tmp_path: Path) -> None:
    repository = tmp_path / "models"
    publish(repository / "a" / "1" / "model.onnx", "1")
    server = start_server("--model-repository", repository, "--keep-versions", 1, *WATCH)
    # A version answers with its own labels: that of an answer and that of its labels must be one.
    with Clients(server.url, lambda body, _, mark: body["version"] == mark) as clients:
        eventually(lambda: clients.answers["1"])
        for version in range(2, RELOADS + 2):
            publish(repository / "a" / str(version) / "model.onnx", str(version))
            eventually(lambda version=version: clients.answers[str(version)] > 0 or clients.failures)  # type: ignore[misc]
            assert not clients.failures
    assert not clients.failures
    assert set(clients.answers) == {str(version) for version in range(1, RELOADS + 2)}
    (model,) = server.client.get("/v1/models").json()["models"]
    assert model["version"] == str(RELOADS + 1)
    assert not any(entry["level"] == "error" for entry in server.log)


def test_a_file_that_is_replaced_damaged_and_removed_under_load(
    start_server: Callable[..., Server], tmp_path: Path
) -> None:
    path = tmp_path / "a.onnx"
    publish(path, "first")
    server = start_server(path, *WATCH)

    def reason() -> str:
        (state,) = server.client.get("/v1/models").json()["versions"]
        assert state["state"] == "READY"
        return str(state["reason"])

    with Clients(server.url, lambda *_: True) as clients:
        eventually(lambda: clients.answers["first"])
        publish(path, "second")
        eventually(lambda: clients.answers["second"])
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])  # in place, as a full disk leaves it
        eventually(lambda: "truncated" in reason())
        path.write_bytes(b"\0" * len(content))
        eventually(lambda: "not an ONNX file" in reason())
        path.unlink()
        eventually(lambda: "gone" in reason())
        assert server.client.get("/v2/health/ready").status_code == 200
        publish(path, "third")
        eventually(lambda: clients.answers["third"])
    assert not clients.failures
    assert set(clients.answers) == {"first", "second", "third"}
    assert reason() == ""


ENDLESS = colour_model(spin=2**62).SerializeToString()


def test_a_load_that_never_ends_keeps_nobody_waiting(start_server: Callable[..., Server], tmp_path: Path) -> None:
    publish(tmp_path / "a.onnx", "first")
    publish(tmp_path / "b.onnx", "first")
    server = start_server("--model-repository", tmp_path, *WATCH, "--timeout", 1, "--drain-timeout", 1)
    (tmp_path / "c.onnx").write_bytes(ENDLESS)

    def state_of_c() -> str:
        versions = server.client.get("/v1/models").json()["versions"]
        return " ".join(version["reason"] for version in versions if version["name"] == "c")

    def control(do: str) -> httpx.Response:
        return server.client.post(f"/v2/repository/models/b/{do}")

    eventually(lambda: "being loaded" in state_of_c())
    assert control("load").status_code == 503
    assert control("unload").status_code == 200
    assert label(server.client.post("/v1/classify?model=a", files={"image": RED})) == "red first"

    def load_again() -> None:
        with contextlib.suppress(httpx.HTTPError):
            control("load")

    waiting = threading.Thread(target=load_again)
    waiting.start()
    began = time.monotonic()
    assert server.terminate() == 0
    assert time.monotonic() - began < 10
    waiting.join()
    assert not any(entry["level"] == "error" for entry in server.whole_log())


def test_a_start_that_never_ends_is_ended_by_sigterm(tmp_path: Path) -> None:
    path = tmp_path / "endless.onnx"
    path.write_bytes(ENDLESS)
    # What says that loading has begun is the last thing that Python does for long.
    prelude = "import serving.models.loading as loading; prove = loading._prove\n"
    prelude += "loading._prove = lambda *given: [print('loading', flush=True), prove(*given)]"
    command = [sys.executable, "-c", f"{prelude}\n{PROGRAM}", str(path), "--threads", "1"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "loading\n"
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=PATIENCE) == 0
        finally:
            process.kill()


def test_versions_over_http(start_server: Callable[..., Server], tmp_path: Path) -> None:
    repository = tmp_path / "models"
    for version in ("1", "2"):
        publish(repository / "a" / version / "model.onnx", version)
    server = start_server("--model-repository", repository, *WATCH)

    def ask(**params: str) -> httpx.Response:
        return server.client.post("/v1/classify", params=params, files={"image": RED})

    assert label(ask()) == label(ask(model="a")) == label(ask(model="a", version="2")) == "red 2"
    assert label(ask(model="a", version="1")) == "red 1"
    assert ask(model="a", version="3").status_code == 404
    assert [model["version"] for model in server.client.get("/v1/models").json()["models"]] == ["2", "1"]
    shutil.rmtree(repository / "a" / "2")  # the way back
    eventually(lambda: label(ask()) == "red 1")


def test_not_ready_says_why(start_server: Callable[..., Server], tmp_path: Path) -> None:
    repository = tmp_path / "models"
    repository.mkdir()
    (repository / "a.onnx").write_bytes(b"x")
    server = start_server("--model-repository", repository, *WATCH)
    assert server.client.get("/v2/health/live").status_code == 200
    refused = server.client.get("/v2/health/ready")
    assert refused.status_code == 503
    assert "a: Version 1: " in refused.json()["error"]
    assert "ONNX" in refused.json()["error"]
    answer = server.client.post("/v1/classify", files={"image": RED})
    assert answer.status_code == 503
    publish(repository / "a.onnx", "mended")
    eventually(lambda: server.client.get("/v2/health/ready").status_code == 200)
    assert label(server.client.post("/v1/classify", files={"image": RED})) == "red mended"


@pytest.mark.parametrize("listed", [True, False])
def test_a_folder_that_is_empty_waits_for_models(
    start_server: Callable[..., Server], tmp_path: Path, listed: bool
) -> None:
    server = start_server("--model-repository", tmp_path, *WATCH)
    assert "There is no model" in server.client.get("/v2/health/ready").json()["error"]
    params = {"model": "a"} if listed else {}
    assert server.client.post("/v1/classify", params=params, files={"image": RED}).status_code in (404, 503)
    publish(tmp_path / "a.onnx", "new")
    eventually(lambda: server.client.get("/v2/health/ready").status_code == 200)
    assert label(server.client.post("/v1/classify", params=params, files={"image": RED})) == "red new"
