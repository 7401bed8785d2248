"""What every request gets, whatever its path: a request id, a metric, an access log line, and never a traceback."""

from __future__ import annotations

import contextlib
import logging
import random
import re
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.draining import Drain
from serving.errors import error_reason, error_response
from serving.metrics import Metrics
from serving.tracing import Tracing

__all__ = ["ObserveRequests"]

_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
# W3C trace context: version, trace id, parent id, flags. Zeros alone are no id.
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")
_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
_LOGGED_CHARACTERS = 512

access_log = logging.getLogger("serving.access")
error_log = logging.getLogger("serving.error")


class ObserveRequests:
    """Outermost ASGI middleware."""

    def __init__(
        self, app: ASGIApp, metrics: Metrics, drain: Drain, *, tracing: Tracing | None = None, log_requests: bool = True
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._drain = drain
        self._tracing = tracing
        self._log_requests = log_requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI interface."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        trace_id = _trace_id(headers.get("traceparent", ""))
        request_id = _request_id(headers.get("x-request-id", ""), trace_id)
        known = {"trace_id": trace_id} if trace_id else {}
        state = scope.setdefault("state", {})
        state.update(request_id=request_id, status=0, log=known)
        started = time.perf_counter()

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                state["status"] = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
                if self._drain.begun:
                    MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        span = contextlib.nullcontext() if self._tracing is None else self._tracing.request(scope)
        with self._metrics.in_flight.track_inprogress(), span:
            try:
                await self._app(scope, receive, send_with_id)
            except Exception:  # noqa: BLE001 - the one place that turns a bug into a 500
                error_log.exception("unhandled error", extra={"fields": {"request_id": request_id}})
                if not state["status"]:
                    await error_response(scope, 500)(scope, receive, send_with_id)
            finally:
                self._record(scope, state["status"], time.perf_counter() - started)

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "unmatched")
        # Only known values become labels: a client must not be able to grow the metrics.
        method = scope["method"] if scope["method"] in _METHODS else "other"
        failed = {"reason": error_reason(scope, status)} if status == 0 or status >= 400 else {}
        self._metrics.count_request(method, route, status, seconds, **failed)
        if self._log_requests:
            fields = {
                "request_id": scope["state"]["request_id"],
                "method": scope["method"][:_LOGGED_CHARACTERS],
                "path": scope["path"][:_LOGGED_CHARACTERS],
                "status": status,
                "duration_ms": round(seconds * 1000, 3),
                "client": (scope.get("client") or ("",))[0],
                **failed,
                **scope["state"]["log"],
            }
            access_log.info("request", extra={"fields": fields})


def _trace_id(traceparent: str) -> str:
    """The trace id of a W3C ``traceparent``; empty if it is none."""
    found = _TRACEPARENT.fullmatch(traceparent)
    return found[1] if found else ""


def _request_id(given: str, trace_id: str) -> str:
    """The client's own id if it is harmless, else the id of the trace that it belongs to, else a new one."""
    return given if _ID.fullmatch(given) else trace_id or f"{random.getrandbits(128):032x}"
