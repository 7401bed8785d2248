"""Every failure as a status and one sentence: RFC 9457 problem+json, or ``{"error": text}`` under ``/v2``.

400 malformed body · 401 no valid key · 403 not allowed here · 404 no such path or model · 405 method · 408 body too
slow · 413 too many bytes, pixels or images · 415 not an image we read · 422 bad parameter or damaged image · 499 the
client has gone · 500 our fault · 503 full, or no model ready · 504 too slow.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, MutableMapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from cbn_deploy.errors import CbnError, CorruptImageError, ImageTooLargeError, UnsupportedImageError
from serving.responses import JsonResponse

__all__ = ["CLIENT_GONE", "REASONS", "ApiError", "error_reason", "error_response", "install_error_handlers"]

CLIENT_GONE = 499  # of no standard, but what everybody's logs say since nginx

_SENTENCES = {
    404: "There is nothing at this path; /docs lists what there is.",
    405: "This path does not take that method; the Allow header says which it takes.",
    500: "The server failed on this request; its log has the details under this request id.",
}


log = logging.getLogger("serving.error")

# As RFC 9110 has them; the names in http.HTTPStatus depend on Python's version.
_TITLES = {413: "Content Too Large", 422: "Unprocessable Content", CLIENT_GONE: "Client Closed Request"}

# For metrics and logs, where one status has several reasons; the others are told by their status.
_REASONS = {
    0: "aborted",
    400: "malformed",
    401: "no_key",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "upload_timeout",
    413: "too_large",
    415: "unsupported_media_type",
    422: "invalid_parameter",
    CLIENT_GONE: "client_gone",
    500: "internal",
    501: "not_offered",
    503: "not_ready",
    504: "timeout",
}
_OTHER = "other"
REASONS = frozenset({*_REASONS.values(), "queue_full", "image_too_large", "unsupported_image", "corrupt_image", _OTHER})


class ApiError(Exception):
    """A request that gets ``status`` and ``detail``, one sentence for the client, instead of an answer.

    ``reason`` is a word for metrics and logs, where the status alone does not say it.
    """

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None, *, reason: str = "") -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = dict(headers or {})
        self.reason = reason


def error_reason(scope: MutableMapping[str, Any], status: int) -> str:
    """The word that metrics and logs have for the error with which the request of ``scope`` ended."""
    return scope.get("state", {}).get("reason") or _REASONS.get(status, _OTHER)


def error_response(
    scope: MutableMapping[str, Any],
    status: int,
    detail: str = "",
    headers: Mapping[str, str] | None = None,
    *,
    reason: str = "",
) -> JsonResponse:
    """The error body that the path of an ASGI ``scope`` promises; ``reason`` is for :func:`error_reason`."""
    scope.setdefault("state", {})["reason"] = reason
    title = _TITLES.get(status) or HTTPStatus(status).phrase
    detail = detail or _SENTENCES.get(status, title)
    if scope["path"] == "/v2" or scope["path"].startswith("/v2/"):
        return JsonResponse({"error": detail}, status, headers)
    problem = {
        "type": "about:blank",
        "title": title,
        "status": status,
        "detail": detail,
        "request_id": scope.get("state", {}).get("request_id", ""),
    }
    return JsonResponse(problem, status, headers, media_type="application/problem+json")


def install_error_handlers(app: FastAPI) -> None:
    """Replace FastAPI's own ``{"detail": ...}`` answers."""
    for kind in (ApiError, CbnError, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, _answer)


async def _answer(request: Request, error: Exception) -> JsonResponse:
    match error:
        case ApiError():
            if error.status == 500:  # its client is told that the log has it
                fields = {"request_id": request.state.request_id, "reason": error.detail, **request.state.log}
                log.error("no answer", extra={"fields": fields})
            return error_response(request.scope, error.status, error.detail, error.headers, reason=error.reason)
        case HTTPException():
            return error_response(request.scope, error.status_code, headers=error.headers)
        case RequestValidationError():
            return error_response(request.scope, 422, _sentence(error))
        case ImageTooLargeError():
            return error_response(request.scope, 413, str(error), reason="image_too_large")
        case UnsupportedImageError():
            return error_response(request.scope, 415, str(error), reason="unsupported_image")
        case CorruptImageError():
            return error_response(request.scope, 422, str(error), reason="corrupt_image")
        case _:
            raise error  # not the client's doing


def _sentence(error: RequestValidationError) -> str:
    first = error.errors()[0]
    name = ".".join(str(part)[:80] for part in first["loc"][1:]) or "request"
    if first["type"] == "extra_forbidden":
        return f"{name}: there is no such parameter; /docs lists those there are."
    return f"{name}: {first['msg']}."
