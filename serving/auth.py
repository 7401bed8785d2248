"""API keys from a file."""

from __future__ import annotations

import hmac
from pathlib import Path
from typing import Annotated

from fastapi import Request, Security
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer

from cbn_deploy.errors import SettingsError
from serving.errors import ApiError

__all__ = ["ApiKeys", "require_key"]

_header = APIKeyHeader(name="X-API-Key", auto_error=False, description="A key of the server's --api-key-file.")
_bearer = HTTPBearer(auto_error=False, description="The same key as a bearer token.")


class ApiKeys:
    """The keys that open the server: one a line; empty lines and lines starting with ``#`` are skipped.

    Raises:
        SettingsError: the file cannot be read, or has no key, or one that a header cannot carry.
    """

    def __init__(self, path: Path) -> None:
        try:
            lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        except UnicodeDecodeError as error:
            raise SettingsError(f"The API key file {path} is not UTF-8 text; write one key a line.") from error
        except OSError as error:
            raise SettingsError(f"The API key file {path} cannot be read ({error.strerror}).") from error
        keys = [line for line in lines if line and not line.startswith("#")]
        if not keys:
            raise SettingsError(f"The API key file {path} has no key; write one a line, or leave out --api-key-file.")
        if not all(key.isascii() and key.isprintable() and " " not in key for key in keys):
            raise SettingsError(f"A key in {path} has spaces or characters outside ASCII, which no header can carry.")
        self._keys = [key.encode() for key in keys]

    def accept(self, candidate: str) -> bool:
        """Whether ``candidate`` is a key. Every key is compared in full, so the time tells nothing about them."""
        given = candidate.encode("utf-8", errors="replace")
        return any([hmac.compare_digest(given, key) for key in self._keys])


async def require_key(
    request: Request,
    key: Annotated[str | None, Security(_header)],
    bearer: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)],
) -> None:
    """Dependency of every guarded route.

    Raises:
        ApiError: 401, if keys are configured and neither header carries one.
    """
    keys: ApiKeys = request.app.state.services.keys
    candidate = key or (bearer.credentials if bearer else "")
    if not keys.accept(candidate):
        raise ApiError(
            401,
            "This server needs an API key; send it as X-API-Key or as Authorization: Bearer.",
            {"WWW-Authenticate": 'Bearer realm="cbn-serve"'},
        )
