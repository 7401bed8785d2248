"""What every request gets, whatever its path: a request id, a metric, an access log line, and never a traceback."""

from __future__ import annotations

import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.draining import Drain
from serving.errors import error_response
from serving.metrics import Metrics

__all__ = ["ObserveRequests"]

_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}

access_log = logging.getLogger("serving.access")
error_log = logging.getLogger("serving.error")


class ObserveRequests:
    """Outermost ASGI middleware."""

    def __init__(self, app: ASGIApp, metrics: Metrics, drain: Drain) -> None:
        self._app = app
        self._metrics = metrics
        self._drain = drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI interface."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(Headers(scope=scope).get("x-request-id", ""))
        scope.setdefault("state", {}).update(request_id=request_id, log={})
        started = time.perf_counter()
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = request_id
                if self._drain.begun:
                    headers["Connection"] = "close"
            await send(message)

        with self._metrics.in_flight.track_inprogress():
            try:
                await self._app(scope, receive, send_with_id)
            except Exception:  # noqa: BLE001 - the one place that turns a bug into a 500
                error_log.exception("unhandled error", extra={"fields": {"request_id": request_id}})
                if not status:
                    await error_response(scope, 500)(scope, receive, send_with_id)
            finally:
                self._record(scope, status, time.perf_counter() - started)

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "unmatched")
        # Only known values become labels: a client must not be able to grow the metrics.
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._metrics.requests.labels(method=method, route=route, status=status).inc()
        self._metrics.request_seconds.labels(route=route).observe(seconds)
        access_log.info(
            "request",
            extra={
                "fields": {
                    "request_id": scope["state"]["request_id"],
                    "method": scope["method"],
                    "path": scope["path"],
                    "status": status,
                    "duration_ms": round(seconds * 1000, 3),
                    "client": (scope.get("client") or ("",))[0],
                    **scope["state"]["log"],
                }
            },
        )


def _request_id(given: str) -> str:
    """The client's own id if it is harmless, else a new one."""
    return given if _ID.fullmatch(given) else uuid.uuid4().hex
