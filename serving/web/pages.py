"""Files of the two pages: read once, answered with headers that let nothing foreign in.

Both pages address everything relative to themselves, so they work under whatever prefix a proxy gives the server.
Neither needs an API key: they hold nothing, and the page asks for the key that its requests need.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import fastapi_offline
from fastapi import APIRouter, Request, Response

from serving.errors import ApiError

__all__ = ["page_router"]

_MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}
_NOTHING_ELSE = (
    "default-src 'none'; script-src 'self'; connect-src 'self'; img-src 'self' data: blob:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# The page makes no HTML from text at all, and the browser holds it to that.
_PAGE_POLICY = f"{_NOTHING_ELSE}; style-src 'self'; require-trusted-types-for 'script'; trusted-types 'none'"
# Swagger UI writes style attributes (swagger-api/swagger-ui#10655).
_DOCS_POLICY = f"{_NOTHING_ELSE}; style-src 'self' 'unsafe-inline'"
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # A new release shows at once; until then the browser's copy is confirmed by its tag.
    "Cache-Control": "no-cache",
}
_SWAGGER_UI = ("swagger-ui-bundle.js", "swagger-ui.css")


@dataclass(frozen=True, kw_only=True)
class _File:
    content: bytes
    media_type: str
    headers: Mapping[str, str]

    def answer(self, request: Request) -> Response:
        """The file, or 304 if the browser has it."""
        known = request.headers.get("if-none-match", "").replace("W/", "").split(",")
        if self.headers["ETag"] in map(str.strip, known):
            return Response(status_code=304, headers=dict(self.headers))
        return Response(self.content, headers={**self.headers, "Content-Type": self.media_type})


def page_router() -> APIRouter:
    """``/``, ``/docs`` and the files that they use, under ``/web``."""
    own = Path(__file__).parent / "static"
    swagger = Path(fastapi_offline.__file__).parent / "static"
    page = _read(own / "index.html", _PAGE_POLICY)
    docs = _read(own / "docs.html", _DOCS_POLICY)
    found = [path for path in own.rglob("*") if path.suffix in _MEDIA_TYPES and path.suffix != ".html"]
    assets = {path.relative_to(own).as_posix(): _read(path) for path in found}
    assets |= {name: _read(swagger / name) for name in _SWAGGER_UI}
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    async def index(request: Request) -> Response:
        return page.answer(request)

    @router.get("/docs")
    async def documentation(request: Request) -> Response:
        return docs.answer(request)

    @router.get("/web/{name:path}")
    async def asset(request: Request, name: str) -> Response:
        if name not in assets:
            raise ApiError(404, "The page has no such file.")
        return assets[name].answer(request)

    return router


def _read(source: Path, policy: str = "default-src 'none'; frame-ancestors 'none'") -> _File:
    content = source.read_bytes()
    tag = hashlib.sha256(content).hexdigest()[:32]
    return _File(
        content=content,
        media_type=_MEDIA_TYPES[source.suffix],
        headers={**_HEADERS, "ETag": f'"{tag}"', "Content-Security-Policy": policy},
    )
