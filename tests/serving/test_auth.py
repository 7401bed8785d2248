"""API keys: the file, and the two headers."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cbn_deploy.errors import SettingsError
from serving.auth import ApiKeys
from tests.serving.files import RED
from tests.serving.in_process import InProcess
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
    wrong, right = "a-wrong-key", "a-long-random-key"
    for key, bearer, status in ((wrong, right, 200), (right, wrong, 200), ("", right, 200), (wrong, wrong, 401)):
        both = {"X-API-Key": key, "Authorization": f"Bearer {bearer}"}
        assert client.get("/v1/models", headers=both).status_code == status, both
    assert client.post("/v1/classify", files={"image": RED}).status_code == 401
    assert client.post("/v1/classify", files={"image": RED}, headers={"X-API-Key": "a-long-random-key"}).is_success
    for route in ("/healthz", "/v2/health/live", "/v2/health/ready", "/docs", "/openapi.json"):
        assert client.get(route).status_code == 200
    operation = client.get("/openapi.json").json()["paths"]["/v1/classify"]["post"]
    assert operation["security"]


class Clock:
    """Seconds since 1970, moved by hand."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


def write(path: Path, content: bytes, written_at: float) -> None:
    path.write_bytes(content)
    os.utime(path, (written_at, written_at))


def test_a_key_can_be_kept_as_its_digest(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    digest = hashlib.sha256(b"the-key").hexdigest()
    path.write_text(f"sha256:{digest.upper()}\nplain\n")
    keys = ApiKeys(path)
    assert keys.accept("the-key") == digest[:8]
    assert keys.accept("plain") == hashlib.sha256(b"plain").hexdigest()[:8]
    for wrong in (f"sha256:{digest}", f"sha256:{digest.upper()}", digest):
        assert keys.accept(wrong) is None
    for bad in ("sha256:", f"sha256:{digest[:-1]}", f"sha256:{digest}0", f"sha256:{'g' * 64}"):
        path.write_text(bad + "\n")
        with pytest.raises(SettingsError, match="64 hexadecimal"):
            ApiKeys(path)


def test_keys_are_rotated_while_the_server_runs(tmp_path: Path) -> None:
    path, clock = tmp_path / "keys", Clock()
    write(path, b"old\n", clock.now - 60)
    keys = ApiKeys(path, clock)
    write(path, b"old\nnew\n", clock.now)
    assert not keys.accept("new"), "looked at a moment ago"
    clock.now += 1.5
    assert keys.accept("new")
    assert keys.accept("old")
    write(path, b"new\n", clock.now)
    clock.now += 1.5
    assert keys.accept("new")
    assert not keys.accept("old"), "a key that was taken out opens nothing"
    assert (len(keys), keys.reloads) == (1, {"success": 2, "failure": 0})


def test_a_file_that_is_still_being_written_is_left_alone(tmp_path: Path) -> None:
    path, clock = tmp_path / "keys", Clock()
    write(path, b"old-key\n", clock.now - 60)
    keys = ApiKeys(path, clock)
    clock.now += 5
    write(path, b"new-", clock.now - 0.2)
    assert not keys.accept("new-")
    write(path, b"new-key\n", clock.now)
    clock.now += 2
    assert keys.accept("new-key")
    assert not keys.accept("new-")


@pytest.mark.parametrize("content", [None, b"", b"# none\n", b"two words\n", b"\xff\n", b"sha256:12\n"])
def test_a_bad_file_keeps_the_keys_from_before_and_is_said_once(
    tmp_path: Path, content: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    path, clock = tmp_path / "keys", Clock()
    write(path, b"old\n", clock.now - 60)
    keys = ApiKeys(path, clock)
    if content is None:
        path.unlink()
    else:
        write(path, content, clock.now)
    with caplog.at_level(logging.ERROR):
        for _ in range(10):
            clock.now += 2
            assert keys.accept("old")
    assert len(caplog.records) == 1
    assert keys.reloads == {"success": 0, "failure": 1}
    write(path, b"good\n", clock.now)
    clock.now += 2
    assert keys.accept("good")
    assert not keys.accept("old")


def test_a_clock_that_goes_back_does_not_stop_the_looking(tmp_path: Path) -> None:
    path, clock = tmp_path / "keys", Clock()
    write(path, b"old\n", clock.now - 60)
    keys = ApiKeys(path, clock)
    clock.now -= 3600
    write(path, b"new\n", clock.now - 30)
    assert keys.accept("new")


def test_the_digest_of_no_key_opens_nothing(start_app: Callable[..., InProcess], tmp_path: Path) -> None:
    """As a shell writes it whose variable is empty."""
    path = tmp_path / "keys"
    path.write_text(f"sha256:{hashlib.sha256(b'').hexdigest()}\n")
    client = start_app(api_key_file=path)
    for headers in ({}, {"X-API-Key": ""}, {"Authorization": "Bearer "}):
        assert client.get("/v1/models", headers=headers).status_code == 401


def test_a_running_server_takes_a_new_key_and_names_it_in_the_log(
    start_server: Callable[..., Server], colours_path: Path, tmp_path: Path
) -> None:
    path = tmp_path / "keys"
    path.write_text("first\n")
    server = start_server(colours_path, "--api-key-file", path)
    assert server.client.get("/v1/models", headers={"X-API-Key": "first"}).status_code == 200
    assert server.wait_for_log("request")["key"] == hashlib.sha256(b"first").hexdigest()[:8]
    (tmp_path / "keys.new").write_text("second\n")
    (tmp_path / "keys.new").replace(path)
    deadline = time.monotonic() + 60
    while server.client.get("/v1/models", headers={"X-API-Key": "second"}).status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert server.client.get("/v1/models", headers={"X-API-Key": "first"}).status_code == 401
    assert server.wait_for_log("API keys loaded")["keys"] == 1
    text = "".join(map(str, server.whole_log()))
    assert "first'" not in text
    assert "second'" not in text
