"""OpenTelemetry traces of requests and their stages, where it is installed and ``OTEL_*`` variables ask for it."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import entry_points, version
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers
from starlette.types import Scope

from serving.errors import error_reason

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

__all__ = ["Tracing", "tracing_from_environment"]

_ASKED_BY = ("OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc"}
# What asks every few seconds whether all is well would bury what people ask.
_NOT_TRACED = frozenset({"/healthz", "/metrics", "/v2/health/live", "/v2/health/ready"})

log = logging.getLogger("serving.tracing")


class Tracing:
    """Makes the spans: one for a request, continuing the trace of its ``traceparent``, and one for each stage.

    Args:
        provider: of the OpenTelemetry API; in practice one of the SDK.
        owned: whether :meth:`close` ends it.
    """

    def __init__(self, provider: TracerProvider, *, owned: bool = False) -> None:
        from opentelemetry import propagate, trace

        self._propagate, self._trace = propagate, trace
        self._provider, self._owned = provider, owned
        self._tracer = provider.get_tracer("cbn-serve", version("cbn-deploy"))

    @contextmanager
    def request(self, scope: Scope) -> Iterator[None]:
        """A span around the block in which the request of an ASGI ``scope`` is answered.

        Afterwards ``scope["state"]["status"]`` is the status that was sent, 0 for none.
        """
        if scope["path"] in _NOT_TRACED:
            yield
            return
        context = self._propagate.extract(dict(Headers(scope=scope)))
        method = scope["method"]
        with self._tracer.start_as_current_span(
            method,
            context,
            self._trace.SpanKind.SERVER,
            {
                "http.request.method": method,
                "url.scheme": scope.get("scheme", "http"),
                "url.path": scope["path"],
                "client.address": (scope.get("client") or ("",))[0],
            },
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            ids = span.get_span_context()
            scope["state"]["log"].update(trace_id=f"{ids.trace_id:032x}", span_id=f"{ids.span_id:016x}")
            try:
                yield
            finally:
                route, status = getattr(scope.get("route"), "path", None), scope["state"]["status"]
                if route:
                    span.update_name(f"{method} {route}")
                    span.set_attribute("http.route", route)
                span.set_attribute("http.response.status_code", status)
                span.set_attributes({f"cbn.{name}": value for name, value in _worth_knowing(scope).items()})
                if status == 0 or status >= 400:
                    span.set_attribute("error.type", error_reason(scope, status))
                if status == 0 or status >= 500:  # a client's mistake is no error of a server's span
                    span.set_status(self._trace.StatusCode.ERROR)

    def stage(self, name: str, started: float, seconds: float, attributes: Mapping[str, Any] | None = None) -> None:
        """A span that is over: it began at ``started`` by ``time.perf_counter`` and took ``seconds``."""
        begun = time.time_ns() - round((time.perf_counter() - started) * 1e9)
        span = self._tracer.start_span(name, attributes=dict(attributes or {}), start_time=begun)
        span.end(begun + round(seconds * 1e9))

    def close(self) -> None:
        """Send what is left."""
        if self._owned and (shutdown := getattr(self._provider, "shutdown", None)):
            shutdown()


def tracing_from_environment() -> Tracing | None:
    """What the ``OTEL_*`` variables ask for; ``None``: nothing, or something that is not installed, which is logged."""
    names = _exporters()
    if not names:
        return None
    try:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        log.warning("no traces: OTEL_* variables ask for them, but opentelemetry-sdk is not installed")
        return None
    provider = TracerProvider(resource=Resource.create(_resource()))
    for name in names:
        found = list(entry_points(group="opentelemetry_traces_exporter", name=name))
        if not found:
            package = f"opentelemetry-exporter-{name.replace('_', '-')}"
            log.warning("no traces: exporter not installed", extra={"fields": {"exporter": name, "package": package}})
            return None
        provider.add_span_processor(BatchSpanProcessor(found[0].load()()))
    return Tracing(provider, owned=True)


def _exporters() -> list[str]:
    """The exporters' registered names."""
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or not any(map(os.environ.get, _ASKED_BY)):
        return []
    protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    otlp = _PROTOCOLS.get(protocol or "", _PROTOCOLS["http/protobuf"])
    wanted = (name.strip() for name in (os.environ.get("OTEL_TRACES_EXPORTER") or "otlp").split(","))
    return [otlp if name == "otlp" else name for name in wanted if name and name != "none"]


def _resource() -> dict[str, str]:
    """What identifies the server, unless the environment says it."""
    named = os.environ.get("OTEL_SERVICE_NAME") or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    return {"service.version": version("cbn-deploy"), **({} if named else {"service.name": "cbn-serve"})}


def _worth_knowing(scope: Scope) -> dict[str, Any]:
    return {name: value for name, value in scope["state"]["log"].items() if name in ("model", "version", "images")}
