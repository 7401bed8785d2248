"""Traces, with OpenTelemetry's own SDK."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.app import create_app
from serving.settings import load_settings
from serving.tracing import Tracing, tracing_from_environment
from tests.serving.files import RED
from tests.serving.in_process import InProcess
from tests.serving.server import Server

pytest.importorskip("opentelemetry.sdk", reason="opentelemetry-sdk is not installed")

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
HEADERS = {"traceparent": f"00-{TRACE}-{PARENT}-01"}


class Traced(InProcess):
    """An application whose spans stay in memory."""

    def __init__(self, path: Path) -> None:
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

        self.exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        settings = load_settings(models=[str(path)], threads=1, watch_interval=0)
        super().__init__(create_app(settings, tracing=Tracing(provider)))

    def spans(self) -> dict[str, Any]:
        found = self.exporter.get_finished_spans()
        self.exporter.clear()
        assert len({span.name for span in found}) == len(found)
        return {span.name: span for span in found}


@pytest.fixture(scope="module")
def traced(colours_path: Path) -> Iterator[Traced]:
    running = Traced(colours_path)
    yield running
    running.close()


def test_a_classification_continues_the_clients_trace_stage_by_stage(traced: Traced) -> None:
    answer = traced.post("/v1/classify", files={"image": RED}, headers=HEADERS)
    spans = traced.spans()
    assert set(spans) == {"POST /v1/classify", "decode", "queue", "inference"}
    request = spans["POST /v1/classify"]
    assert request.kind.name == "SERVER"
    assert request.parent.span_id == int(PARENT, 16)
    assert {span.context.trace_id for span in spans.values()} == {int(TRACE, 16)}
    assert request.attributes["http.route"] == "/v1/classify"
    assert request.attributes["http.response.status_code"] == 200
    assert (request.attributes["cbn.model"], request.attributes["cbn.images"]) == ("colours", 1)
    assert spans["inference"].attributes["cbn.batch_size"] == 1
    stages = [spans[name] for name in ("decode", "queue", "inference")]
    for span in stages:
        assert span.parent.span_id == request.context.span_id
        assert request.start_time <= span.start_time <= span.end_time <= request.end_time
    assert [span.start_time for span in stages] == sorted(span.start_time for span in stages)
    for span, field in zip(stages, ("decode_ms", "queue_ms", "inference_ms"), strict=True):
        assert (span.end_time - span.start_time) / 1e6 == pytest.approx(answer.json()["timing"][field], abs=1e-3)


def test_tensors_have_no_decoding(traced: Traced) -> None:
    images = np.full((2, 3, 8, 8), 0.5, np.float32)
    tensor = {"name": "images", "datatype": "FP32", "shape": images.shape, "data": images.ravel().tolist()}
    assert traced.post("/v2/models/colours/infer", json={"inputs": [tensor]}).status_code == 200
    spans = traced.spans()
    assert set(spans) == {"POST /v2/models/{model}/infer", "queue", "inference"}
    assert spans["POST /v2/models/{model}/infer"].parent is None


def test_a_clients_mistake_is_told_from_our_failure(traced: Traced, monkeypatch: pytest.MonkeyPatch) -> None:
    traced.post("/v1/classify", content=b"no image", headers={"Content-Type": "image/png"})
    (mistake,) = traced.spans().values()
    assert mistake.attributes["error.type"] == "unsupported_image"
    assert mistake.status.status_code.name == "UNSET"
    with traced.app.state.services.admission.admit(model := traced.app.state.services.registry.get(None)):
        monkeypatch.setattr(traced.app.state.services.admission, "_limit", 1)
        assert traced.post("/v1/classify", files={"image": RED}).status_code == 503
    assert model.name == "colours"
    (full,) = traced.spans().values()
    assert full.attributes["error.type"] == "queue_full"
    assert full.status.status_code.name == "ERROR"


def test_probes_and_scrapes_are_not_traced_and_wrong_parents_begin_new_traces(traced: Traced) -> None:
    for path in ("/healthz", "/v2/health/ready", "/v2/health/live", "/metrics"):
        assert traced.get(path, headers=HEADERS).status_code == 200
    assert traced.spans() == {}
    traced.get("/v1/models", headers={"traceparent": "00-zzz-1-01"})
    (span,) = traced.spans().values()
    assert span.parent is None


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_SERVICE_NAME": "birds"},
        {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"},
        {"OTEL_SDK_DISABLED": "true", "OTEL_TRACES_EXPORTER": "console"},
        {"OTEL_TRACES_EXPORTER": "pigeon"},
    ],
)
def test_nothing_is_traced_unless_asked_for(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert tracing_from_environment() is None


def test_a_server_sends_its_spans_to_the_collector(start_server: Callable[..., Server], colours_path: Path) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the OTLP exporter is not installed")
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    received: list[ExportTraceServiceRequest] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                import gzip

                body = gzip.decompress(body)
            received.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as collector:
        thread = threading.Thread(target=collector.serve_forever, daemon=True)
        thread.start()
        environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.server_port}"}
        server = start_server(colours_path, environment=environment)
        server.client.post("/v1/classify", files={"image": RED}, headers=HEADERS)
        assert server.wait_for_log("request")["trace_id"] == TRACE
        server.client.close()
        server.terminate()  # what was not sent before is sent now
        collector.shutdown()
        thread.join()
    (resource,) = [spans for request in received for spans in request.resource_spans]
    named = {attribute.key: attribute.value.string_value for attribute in resource.resource.attributes}
    assert named["service.name"] == "cbn-serve"
    names = {span.name for scope in resource.scope_spans for span in scope.spans}
    assert names == {"POST /v1/classify", "decode", "queue", "inference"}


def test_without_the_sdk_a_server_runs_and_says_so(start_server: Callable[..., Server], colours_path: Path) -> None:
    blocker = "import sys\nsys.modules['opentelemetry.sdk'] = None"
    server = start_server(colours_path, environment={"OTEL_TRACES_EXPORTER": "otlp"}, prelude=blocker)
    assert server.client.post("/v1/classify", files={"image": RED}).status_code == 200
    (warning,) = [line for line in server.log if line["logger"] == "serving.tracing"]
    assert "opentelemetry-sdk is not installed" in json.dumps(warning)
