"""API keys: the file, and the two headers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cbn_deploy.errors import SettingsError
from serving.auth import ApiKeys
from tests.serving.files import RED
from tests.serving.server import Server


def test_keys_comments_and_empty_lines(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# ours\nfirst-key\n\n  second-key  \n")
    keys = ApiKeys(path)
    assert keys.accept("first-key")
    assert keys.accept("second-key")
    for wrong in ("", "first", "first-key ", "# ours", "first-keyé", "\udce9"):
        assert not keys.accept(wrong)


@pytest.mark.parametrize("content", [b"", b"# nothing\n\n", b"two words\n", "schlüssel\n".encode(), b"\xff\xfe\n"])
def test_files_without_a_usable_key_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "keys"
    path.write_bytes(content)
    with pytest.raises(SettingsError):
        ApiKeys(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        ApiKeys(tmp_path / "absent")


def test_a_guarded_server(start_server: Callable[..., Server], colours_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("a-long-random-key\n")
    client = start_server(colours_path, "--api-key-file", path).client
    for route in ("/v1/models", "/v2", "/v2/models/colours", "/v2/models/colours/ready", "/metrics"):
        for headers in ({}, {"X-API-Key": "wrong"}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic YTpi"}):
            refused = client.get(route, headers=headers)
            assert refused.status_code == 401, route
            assert refused.headers["www-authenticate"].startswith("Bearer")
            assert ("error" in refused.json()) == route.startswith("/v2")
        assert client.get(route, headers={"X-API-Key": "a-long-random-key"}).status_code == 200
        assert client.get(route, headers={"Authorization": "Bearer a-long-random-key"}).status_code == 200
    assert client.post("/v1/classify", files={"image": RED}).status_code == 401
    assert client.post("/v1/classify", files={"image": RED}, headers={"X-API-Key": "a-long-random-key"}).is_success
    for route in ("/healthz", "/v2/health/live", "/v2/health/ready", "/docs", "/openapi.json"):
        assert client.get(route).status_code == 200
    operation = client.get("/openapi.json").json()["paths"]["/v1/classify"]["post"]
    assert operation["security"]
