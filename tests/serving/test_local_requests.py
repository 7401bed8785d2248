"""Models are loaded and unloaded by whoever may: on a loopback address neither by web pages nor through proxies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from serving.app import create_app
from serving.settings import load_settings
from tests.serving.in_process import InProcess

CONTROL = "/v2/repository/models/colours"
HERE = "127.0.0.1:8000"
PAGE = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}


def status(client: InProcess, do: str = "unload", **headers: str) -> int:
    return client.post(f"{CONTROL}/{do}", headers={"Host": HERE, **headers}).status_code


@pytest.fixture(scope="module")
def local(colours_path: Path) -> Iterator[InProcess]:
    client = InProcess(create_app(load_settings(models=[str(colours_path)], threads=1, watch_interval=0)))
    yield client
    client.close()


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:3000"},  # another server of this machine
        {"Origin": "https://127.0.0.1:8000"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Host": "rebind.evil.example"},
        {"Host": "localhost.evil.example:8000"},
        {"Host": "192.168.0.7:8000"},
        {"Host": "127.0.0.1@evil.example"},
        {"Host": ""},
        {"X-Forwarded-For": "10.0.0.1"},
        {"X-Forwarded-Proto": "https"},
        {"X-Real-IP": "10.0.0.1"},
        {"Forwarded": "for=10.0.0.1"},
        {"Via": "1.1 proxy"},
    ],
    ids=str,
)
@pytest.mark.parametrize("do", ["load", "unload"])
def test_what_others_have_sent_is_refused(local: InProcess, do: str, headers: dict[str, str]) -> None:
    answer = local.post(f"{CONTROL}/{do}", headers={"Host": HERE, **headers})
    assert answer.status_code == 403
    assert answer.json()["error"].startswith("Only programs of this machine may load and unload models")
    assert local.get("/v2/models/colours/ready").status_code == 200
    assert local.post("/v2/repository/index", headers={"Host": HERE, **headers}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Host": "localhost:8000"},
        {"Host": "LOCALHOST"},
        {"Host": "127.0.0.2"},
        {"Host": "[::1]:8000"},
        {"Origin": f"http://{HERE}"},
        {"Sec-Fetch-Site": "none"},
        {"Origin": f"http://{HERE}", "Sec-Fetch-Site": "same-origin"},
    ],
    ids=str,
)
def test_programs_of_this_machine_and_our_own_page_may(local: InProcess, headers: dict[str, str]) -> None:
    assert (status(local, "unload", **headers), status(local, "load", **headers)) == (200, 200)


def test_whoever_was_let_in_by_a_key_or_a_flag_is_not_asked_where_from(
    start_app: Callable[..., InProcess], tmp_path: Path
) -> None:
    (tmp_path / "keys").write_text("secret\n")
    guarded = start_app(api_key_file=tmp_path / "keys")
    assert status(guarded, **PAGE) == 401
    assert status(guarded, **PAGE, **{"X-API-Key": "secret", "Via": "1.1 proxy"}) == 200
    assert status(start_app(model_control=True), **PAGE) == 200


def test_a_page_of_an_origin_that_may_classify_may_not_unload(start_app: Callable[..., InProcess]) -> None:
    assert status(start_app(cors_origins="https://app.example.org"), Origin="https://app.example.org") == 403
