"""What strangers send, to a real server with its default limits: right statuses, never a 500, and no error logged."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.hostile_images import HostileImage, corpus, damaged_images
from tests.serving.files import BLUE
from tests.serving.server import Server


@pytest.fixture(scope="module")
def default_server(colours_path: Path) -> Iterator[Server]:
    running = Server(colours_path, "--threads", 1, "--decode-threads", 2)
    yield running
    running.stop()


@pytest.mark.parametrize("image", corpus(), ids=lambda image: image.name)
def test_known_cases(default_server: Server, image: HostileImage) -> None:
    response = default_server.client.post("/v1/classify", content=image.content, headers={"Content-Type": "image/jpeg"})
    assert response.status_code in image.statuses, response.text


def test_damaged_files(start_server: Callable[..., Server], colours_path: Path) -> None:
    server = start_server(colours_path, "--threads", 1)
    statuses: dict[int, int] = {}
    for content in itertools.islice(damaged_images(seed=1), 400):
        response = server.client.post("/v1/classify", content=content, headers={"Content-Type": "image/png"})
        statuses[response.status_code] = statuses.get(response.status_code, 0) + 1
    assert set(statuses) <= {200, 413, 415, 422}
    assert min(statuses.get(200, 0), statuses.get(415, 0), statuses.get(422, 0)) > 10, "not only one kind of damage"
    assert server.client.post("/v1/classify", files={"image": BLUE}).status_code == 200
    server.terminate()
    log = server.whole_log()
    assert sum(entry["message"] == "request" for entry in log) == 401
    assert not [entry for entry in log if entry["level"] in ("error", "critical")]
