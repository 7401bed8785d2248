"""Pages of other origins: nothing unless told."""

from __future__ import annotations

from collections.abc import Callable

from tests.serving.files import RED
from tests.serving.in_process import InProcess

OURS = "https://app.example.org"
PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key,content-type"}


def test_off_unless_told(start_app: Callable[..., InProcess]) -> None:
    client = start_app()
    answer = client.post("/v1/classify", files={"image": RED}, headers={"Origin": OURS})
    assert answer.status_code == 200
    assert not [name for name in answer.headers if name.startswith("access-control")]
    asked = client.request("OPTIONS", "/v1/classify", headers={"Origin": OURS, **PREFLIGHT})
    assert asked.status_code == 405
    assert not [name for name in asked.headers if name.startswith("access-control")]


def test_only_the_origins_that_are_named(start_app: Callable[..., InProcess]) -> None:
    client = start_app(cors_origins=f"{OURS},http://localhost:3000")
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


def test_every_origin_if_told_so(start_app: Callable[..., InProcess]) -> None:
    answer = start_app(cors_origins="*").get("/healthz", headers={"Origin": "https://anybody.example"})
    assert answer.headers["access-control-allow-origin"] == "*"
