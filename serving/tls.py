"""HTTPS: the certificate and its key, read again when they are renewed."""

from __future__ import annotations

import logging
import ssl
from pathlib import Path

from cbn_deploy.errors import SettingsError
from serving.watched_file import Fingerprint, fingerprint

__all__ = ["TlsFiles"]

log = logging.getLogger("serving.tls")


class TlsFiles:
    """A certificate and its key in PEM files.

    Raises:
        SettingsError: they cannot be read, do not fit together, or the key is encrypted.
    """

    def __init__(self, cert: Path, key: Path) -> None:
        self.cert, self.key = cert, key
        self._loaded = self._fingerprints()
        try:
            self._load_into(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
        except (OSError, ValueError) as error:
            raise SettingsError(
                f"The TLS files {cert} and {key} cannot be used ({_reason(error)}); give a PEM certificate, its chain "
                "behind it, and its unencrypted key."
            ) from error

    def renew(self, context: ssl.SSLContext) -> None:
        """If the files have changed let new connections of ``context`` use them; if they are no good, say so once."""
        found = self._fingerprints()
        if found == self._loaded or None in found:
            return
        self._loaded = found
        try:
            # A trial first: one that fails half way must not leave a certificate without its key.
            self._load_into(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
            self._load_into(context)
        except (OSError, ValueError) as error:
            log.error("TLS files rejected", extra={"fields": {"file": str(self.cert), "reason": _reason(error)}})
        else:
            log.info("TLS files renewed", extra={"fields": {"file": str(self.cert)}})

    def _load_into(self, context: ssl.SSLContext) -> None:
        context.load_cert_chain(self.cert, self.key, password=_no_password)

    def _fingerprints(self) -> tuple[Fingerprint | None, Fingerprint | None]:
        return fingerprint(self.cert), fingerprint(self.key)


def _no_password() -> str:
    """Without this OpenSSL would ask the terminal."""
    raise ValueError("the key is encrypted")


def _reason(error: Exception) -> str:
    return str(getattr(error, "reason", None) or getattr(error, "strerror", None) or error)
