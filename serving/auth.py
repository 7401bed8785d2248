"""API keys from a file, read again when it changes."""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from fastapi import Request, Security
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer

from cbn_deploy.errors import SettingsError
from serving.errors import ApiError
from serving.watched_file import fingerprint

__all__ = ["ApiKeys", "authenticate", "require_key"]

_header = APIKeyHeader(name="X-API-Key", auto_error=False, description="A key of the server's --api-key-file.")
_bearer = HTTPBearer(auto_error=False, description="The same key as a bearer token.")

_DIGEST = re.compile(r"sha256:([0-9a-fA-F]{64})")
_LOOK_SECONDS = 1.0
# A file changed less than this ago may still be being written: half a key must not become a key.
_SETTLE_SECONDS = 1.0
# Digits of a key's digest that the access log tells keys apart by; they help nobody to guess a key.
_NAME_DIGITS = 8

log = logging.getLogger("serving.auth")


class ApiKeys:
    """The keys that open the server: one a line; empty lines and lines starting with ``#`` are skipped.

    A key may be written as ``sha256:`` and the 64 hexadecimal digits of its SHA-256, so that the file opens nothing by
    itself. Only digests are kept in memory. When the file changes it is read again, at most once a second; while it
    cannot be used the keys from before go on opening.

    Args:
        path: the file.
        clock: seconds since 1970, for tests.

    Raises:
        SettingsError: the file cannot be read, or has no key, or one that a header cannot carry.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._path, self._clock = path, clock
        self._looked = clock()
        self._read_as = fingerprint(path)
        self._digests = _read(path)
        self.reloads: Counter[str] = Counter(success=0, failure=0)

    def __len__(self) -> int:
        """How many keys there are."""
        return len(self._digests)

    def accept(self, candidate: str) -> str | None:
        """The first digits of the digest of ``candidate`` if that is a key, else ``None``.

        What is compared are digests, all of them and each in full, so the time tells nothing about the keys.
        """
        self._refresh()
        given = hashlib.sha256(candidate.encode("utf-8", errors="replace")).digest()
        matches = [hmac.compare_digest(given, digest) for digest in self._digests]
        return given.hex()[:_NAME_DIGITS] if any(matches) else None

    def _refresh(self) -> None:
        now = self._clock()
        if 0 <= now - self._looked < _LOOK_SECONDS:
            return
        self._looked = now
        found = fingerprint(self._path)
        if found == self._read_as or (found and 0 <= now - found[0] * 1e-9 < _SETTLE_SECONDS):
            return
        self._read_as = found
        fields: dict[str, object] = {"file": str(self._path)}
        try:
            self._digests = _read(self._path)
        except SettingsError as error:
            self.reloads["failure"] += 1
            log.error("API keys rejected, those from before stay", extra={"fields": {**fields, "reason": str(error)}})
        else:
            self.reloads["success"] += 1
            log.info("API keys loaded", extra={"fields": {**fields, "keys": len(self._digests)}})


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
    given = [candidate for candidate in (key, bearer.credentials if bearer else None) if candidate]
    # A proxy may have added one of the two for itself. Both are looked up: the time must not tell which one is right.
    name = next(filter(None, [keys.accept(candidate) for candidate in given]), None)
    if name is None:
        raise ApiError(
            401,
            "This server needs an API key; send it as X-API-Key or as Authorization: Bearer.",
            {"WWW-Authenticate": 'Bearer realm="cbn-serve"'},
        )
    request.state.log.update(key=name)


async def authenticate(request: Request) -> None:
    """:func:`require_key` for a route whose arguments FastAPI does not put together, if keys are configured at all."""
    if request.app.state.services.keys is not None:
        await require_key(request, await _header(request), await _bearer(request))


def _read(path: Path) -> tuple[bytes, ...]:
    """The digests of the keys in ``path``."""
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
    return tuple(_digest(key, path) for key in keys)


def _digest(line: str, path: Path) -> bytes:
    if not line.startswith("sha256:"):
        return hashlib.sha256(line.encode()).digest()
    written = _DIGEST.fullmatch(line)
    if written is None:
        raise SettingsError(f"A line of {path} starts with sha256: but has no 64 hexadecimal digits after it.")
    return bytes.fromhex(written[1])
