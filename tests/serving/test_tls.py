"""HTTPS with real certificates, and a client that checks them."""

from __future__ import annotations

import datetime
import socket
import ssl
import time
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path

import httpx
import pytest

from cbn_deploy.errors import SettingsError
from serving.tls import TlsFiles
from tests.serving.files import RED
from tests.serving.server import Server
from tests.serving.test_cli import assert_one_sentence, run

pytest.importorskip("cryptography", reason="cryptography is not installed")
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def certificate(folder: Path, name: str, *, password: bytes | None = None) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1 and its key: NAME.crt and NAME.key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.timezone.utc)
    signed = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    cert_path, key_path = folder / f"{name}.crt", folder / f"{name}.key"
    cert_path.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    key_path.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption))
    return cert_path, key_path


def trusting(cert: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(cert))


def served_by(url: str) -> str:
    """The common name of the certificate that a new connection is shown."""
    host, port = httpx.URL(url).host, httpx.URL(url).port
    assert port is not None
    shown = x509.load_pem_x509_certificate(ssl.get_server_certificate((host, port)).encode())
    return str(shown.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)


def test_a_client_that_checks_the_certificate_is_answered_and_nobody_else(
    start_server: Callable[..., Server], colours_path: Path, tmp_path: Path
) -> None:
    cert, key = certificate(tmp_path, "one")
    server = start_server(colours_path, "--threads", 1, "--tls-cert", cert, "--tls-key", key)
    assert server.url.startswith("https://127.0.0.1:")
    with httpx.Client(base_url=server.url, verify=trusting(cert), timeout=60, trust_env=False) as client:
        answer = client.post("/v1/classify", files={"image": RED})
        assert answer.json()["results"][0]["predictions"][0]["label"] == "red"
    with httpx.Client(base_url=server.url, timeout=60, trust_env=False) as stranger, pytest.raises(httpx.ConnectError):
        stranger.get("/healthz")
    plain = server.url.replace("https", "http")
    with httpx.Client(base_url=plain, timeout=60, trust_env=False) as client, pytest.raises(httpx.TransportError):
        client.get("/healthz")


def test_a_handshake_that_never_ends_is_cut(
    start_server: Callable[..., Server], colours_path: Path, tmp_path: Path
) -> None:
    cert, key = certificate(tmp_path, "one")
    server = start_server(colours_path, "--tls-cert", cert, "--tls-key", key, "--upload-timeout", 1)
    url = httpx.URL(server.url)
    for said in (b"", bytes.fromhex("1603010200010001fc0303")):  # nothing, and the start of a client's hello
        with socket.create_connection((url.host, url.port), timeout=30) as connection:  # half of asyncio's own limit
            connection.sendall(said)
            assert connection.recv(1000) == b""
    assert served_by(server.url) == "one"


def test_a_renewed_certificate_is_served_without_a_restart(
    start_server: Callable[..., Server], colours_path: Path, tmp_path: Path
) -> None:
    cert, key = certificate(tmp_path, "one")
    quick = "import serving.process; serving.process._TLS_LOOK_SECONDS = 0.5"
    server = start_server(colours_path, "--tls-cert", cert, "--tls-key", key, prelude=quick)
    assert served_by(server.url) == "one"
    new_cert, new_key = certificate(tmp_path, "two")
    new_cert.replace(cert)  # fits no key until the next line has run
    assert server.wait_for_log("TLS files rejected")["file"] == str(cert)
    assert served_by(server.url) == "one"
    new_key.replace(key)
    server.wait_for_log("TLS files renewed")
    deadline = time.monotonic() + 60
    while served_by(server.url) != "two":
        assert time.monotonic() < deadline


def test_files_that_cannot_work_are_refused_before_anything_is_loaded(tmp_path: Path, colours_path: Path) -> None:
    cert, key = certificate(tmp_path, "one")
    _, other_key = certificate(tmp_path, "two")
    _, locked = certificate(tmp_path, "three", password=b"secret")
    (tmp_path / "text").write_text("no certificate")
    for pair in ((cert, other_key), (tmp_path / "absent", key), (cert, tmp_path / "text"), (key, cert), (cert, locked)):
        with pytest.raises(SettingsError, match="cannot be used") as caught:
            TlsFiles(*pair)
        assert "\n" not in str(caught.value)
    assert_one_sentence(run(colours_path, "--tls-cert", cert, "--tls-key", locked), "the key is encrypted")
    assert_one_sentence(run(colours_path, "--tls-cert", cert), "--tls-key")
