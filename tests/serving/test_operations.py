"""Health, metrics, logs and request ids."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.serving.files import RED
from tests.serving.server import Server


def samples(server: Server) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    text = server.client.get("/metrics").text
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def key(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return name, frozenset(labels.items())


def test_healthz(server: Server) -> None:
    assert server.client.get("/healthz").json() == {"status": "ok"}


def test_docs_and_openapi(server: Server) -> None:
    assert "text/html" in server.client.get("/docs").headers["content-type"]
    assert server.client.get("/openapi.json").json()["info"]["title"] == "cbn-serve"


def test_metrics_count_what_happened(start_server: Callable[..., Server], colours_path: Path) -> None:
    server = start_server(colours_path, "--threads", 1)
    for _ in range(3):
        server.client.post("/v1/classify", files=[("image", RED), ("image", RED)])
    server.client.post("/v1/classify", content=b"", headers={"Content-Type": "image/png"})
    for path in ("/a", "/b", "/c"):
        server.client.get(path)
    server.client.request("PROPFIND", "/healthz")
    found = samples(server)
    assert found[key("cbn_requests_total", method="POST", route="/v1/classify", status="200")] == 3
    assert found[key("cbn_requests_total", method="POST", route="/v1/classify", status="422")] == 1
    assert found[key("cbn_requests_total", method="GET", route="unmatched", status="404")] == 3
    assert found[key("cbn_requests_total", method="other", route="/healthz", status="405")] == 1
    assert found[key("cbn_images_total", model="colours")] == 6
    assert found[key("cbn_request_duration_seconds_count", route="/v1/classify")] == 4
    assert found[key("cbn_requests_in_flight")] == 1  # the scrape itself
    for stage in ("decode", "queue", "inference"):
        assert found[key("cbn_stage_duration_seconds_count", model="colours", stage=stage)] == 3
    (info,) = [dict(labels) for name, labels in found if name == "cbn_model_info"]
    assert (info["model"], info["kernel_path"], info["runtime"]) == ("colours", "portable", "onnxruntime")


def test_access_log_is_json_that_no_client_can_forge(start_server: Callable[..., Server], colours_path: Path) -> None:
    server = start_server(colours_path)
    server.client.post("/v1/classify", files={"image": RED}, headers={"X-Request-ID": "abc-1"})
    entry = server.wait_for_log("request")
    assert entry["request_id"] == "abc-1"
    assert (entry["method"], entry["path"], entry["status"]) == ("POST", "/v1/classify", 200)
    assert (entry["model"], entry["images"], entry["client"]) == ("colours", 1, "127.0.0.1")
    assert entry["duration_ms"] > 0
    server.client.get('/x%0a{"message":"request","status":200}')
    assert server.wait_for_log("request")["path"] == '/x\n{"message":"request","status":200}'


def test_request_ids(server: Server) -> None:
    first, second = (server.client.get("/healthz").headers["x-request-id"] for _ in range(2))
    assert first != second
    assert server.client.get("/nowhere", headers={"X-Request-ID": "mine"}).json()["request_id"] == "mine"
    for bad in ("x" * 65, "a b", 'quote"', "<b>"):
        assert server.client.get("/healthz", headers={"X-Request-ID": bad}).headers["x-request-id"] != bad


def test_a_real_server_counts_its_connections_and_makes_no_created_series(server: Server) -> None:
    found = samples(server)
    assert found[key("cbn_connections")] >= 1
    assert found[key("cbn_connections_limit")] == 1000
    assert not [name for name, _ in found if name.endswith("_created")]


def test_request_ids_follow_the_trace(server: Server) -> None:
    trace, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    valid = f"00-{trace}-{parent}-01"
    assert server.client.get("/healthz", headers={"traceparent": valid}).headers["x-request-id"] == trace
    both = {"traceparent": valid, "X-Request-ID": "mine"}
    assert server.client.get("/healthz", headers=both).headers["x-request-id"] == "mine"
    for bad in (
        f"ff-{trace}-{parent}-01",
        f"00-{'0' * 32}-{parent}-01",
        f"00-{trace}-{'0' * 16}-01",
        f"00-{trace.upper()}-{parent}-01",
        f"00-{trace}-{parent}",
        valid + "<",
        "",
    ):
        assert server.client.get("/healthz", headers={"traceparent": bad}).headers["x-request-id"] != trace, bad


def test_the_access_log_says_where_the_time_went_and_why_not(
    start_server: Callable[..., Server], colours_path: Path
) -> None:
    server = start_server(colours_path)
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    headers = {"traceparent": f"00-{trace}-00f067aa0ba902b7-01"}
    server.client.post("/v1/classify", files={"image": RED}, headers=headers)
    entry = server.wait_for_log("request")
    assert (entry["trace_id"], entry["request_id"], entry["version"]) == (trace, trace, "1")
    assert 0 < entry["decode_ms"] + entry["queue_ms"] + entry["inference_ms"] < entry["duration_ms"]
    server.client.post("/v1/classify", content=b"GIF89a", headers={"Content-Type": "image/gif"})
    entry = server.wait_for_log("request")
    assert (entry["status"], entry["reason"], entry["model"]) == (415, "unsupported_image", "colours")
    server.client.get("/" + "x" * 10_000)
    assert len(server.wait_for_log("request")["path"]) == 512


def test_access_logs_can_be_left_out(start_server: Callable[..., Server], colours_path: Path) -> None:
    server = start_server(colours_path, "--no-access-log")
    server.client.get("/healthz")
    server.terminate()
    assert [line["message"] for line in server.whole_log() if line["message"] == "request"] == []


def test_queues_are_seen_while_they_are_long_and_what_a_drain_cuts_off_is_told(
    start_server: Callable[..., Server], slow_path: Path
) -> None:
    server = start_server(slow_path, "--threads", 1, "--max-batch", 1, "--drain-timeout", 1)

    def classify(_: int) -> None:
        # The last ones are cut off by the end of the drain.
        with contextlib.suppress(httpx.HTTPError):
            httpx.post(f"{server.url}/v1/classify", files={"image": RED}, timeout=60, trust_env=False)

    with ThreadPoolExecutor(8) as clients:
        answers = clients.map(classify, range(8))
        found = samples(server)
        while found.get(key("cbn_queue_depth", model="slow"), 0) < 5:
            found = samples(server)
        assert found[key("cbn_requests_admitted", model="slow")] >= found[key("cbn_queue_depth", model="slow")]
        server.client.close()
        server.terminate()
        list(answers)
    ended = [line for line in server.whole_log() if line["message"] == "request" and line["path"] == "/v1/classify"]
    cut = [line for line in ended if line["status"] == 0]
    assert len(ended) == 8
    assert cut
    assert {line["reason"] for line in cut} == {"aborted"}
