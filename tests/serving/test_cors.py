"""Pages of other origins: nothing unless told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from serving.app import create_app
from serving.settings import load_settings
from tests.serving.files import RED
from tests.serving.in_process import InProcess

OURS = "https://app.example.org"
PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key,content-type"}


@pytest.fixture
def start(colours_path: Path) -> Iterator[Callable[..., InProcess]]:
    running: list[InProcess] = []

    def make(**settings: str) -> InProcess:
        chosen = load_settings(models=[str(colours_path)], threads=1, watch_interval=0, **settings)
        running.append(InProcess(create_app(chosen)))
        return running[-1]

    yield make
    for client in running:
        client.close()


def test_off_unless_told(start: Callable[..., InProcess]) -> None:
    client = start()
    answer = client.post("/v1/classify", files={"image": RED}, headers={"Origin": OURS})
    assert answer.status_code == 200
    assert not [name for name in answer.headers if name.startswith("access-control")]
    asked = client.request("OPTIONS", "/v1/classify", headers={"Origin": OURS, **PREFLIGHT})
    assert asked.status_code == 405
    assert not [name for name in asked.headers if name.startswith("access-control")]


def test_only_the_origins_that_are_named(start: Callable[..., InProcess]) -> None:
    client = start(cors_origins=f"{OURS},http://localhost:3000")
    for origin in (OURS, "http://localhost:3000"):
        asked = client.request("OPTIONS", "/v1/classify", headers={"Origin": origin, **PREFLIGHT})
        assert asked.status_code == 200
        assert asked.headers["access-control-allow-origin"] == origin
        answer = client.post("/v1/classify", files={"image": RED}, headers={"Origin": origin})
        assert answer.headers["access-control-allow-origin"] == origin
        assert "x-request-id" in answer.headers["access-control-expose-headers"].lower()
        assert "access-control-allow-credentials" not in answer.headers
        wrong = client.post("/v1/classify", content=b"", headers={"Origin": origin, "Content-Type": "image/png"})
        assert wrong.headers["access-control-allow-origin"] == origin, "a page can read why it was refused"
    for stranger in ("https://evil.example", OURS + ".evil.example", "http://app.example.org", "null"):
        asked = client.request("OPTIONS", "/v1/classify", headers={"Origin": stranger, **PREFLIGHT})
        assert asked.status_code == 400
        assert "access-control-allow-origin" not in asked.headers
        answer = client.post("/v1/classify", files={"image": RED}, headers={"Origin": stranger})
        assert "access-control-allow-origin" not in answer.headers


def test_every_origin_if_told_so(start: Callable[..., InProcess]) -> None:
    answer = start(cors_origins="*").get("/healthz", headers={"Origin": "https://anybody.example"})
    assert answer.headers["access-control-allow-origin"] == "*"
