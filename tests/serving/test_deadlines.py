"""Whatever is slow between a request's body and its answer, the answer's deadline and the client's leaving count."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.app import create_app
from serving.settings import load_settings
from tests.onnx_models import colour_model, write_colour_model
from tests.serving.files import RED, encode
from tests.serving.in_process import InProcess
from tests.serving.server import Server
from tests.serving.test_connections import connect, head
from tests.serving.test_load import wait_until_in_flight

LIMIT = 0.5
STUCK_SECONDS = 30.0
# A form of more than 64 KiB, and as many images as make JSON of more than that, which threads read and write.
LARGE = encode(np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8))
MANY = 100


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InProcess]:
    """Half a second for an answer."""
    path = write_colour_model(tmp_path_factory.mktemp("late") / "colours.onnx", colour_model(with_posterior=True))
    limits = {"timeout": LIMIT, "max_images": MANY}
    running = InProcess(create_app(load_settings(models=[str(path)], threads=1, watch_interval=0, **limits)))
    yield running
    running.close()


@pytest.fixture
def stick(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Make a function hang, and fail in the end, which is after the test."""
    gate = threading.Event()

    def hang(*_: object) -> None:
        gate.wait(STUCK_SECONDS)
        raise RuntimeError("nobody waits for this any more")

    yield lambda name: monkeypatch.setattr(name, hang)
    gate.set()


def infer_body(images: int = 1, **output: Any) -> bytes:
    tensor = {"name": "images", "datatype": "FP32", "shape": [images, 3, 8, 8], "data": [0.5] * (images * 192)}
    return json.dumps({"inputs": [tensor], **output}).encode()


def late(client: InProcess, path: str, **request: Any) -> str:
    """The sentence of a 504."""
    response = client.post(path, **request)
    assert response.status_code == 504, response.text
    problem = response.json()
    return str(problem.get("detail") or problem["error"])


@pytest.mark.parametrize(
    ("slow", "parameters", "image"),
    [
        ("serving.images.parse_multipart", {}, LARGE),
        ("serving.images.decode_image", {}, RED),
        ("serving.api.v1.image_results", {"explain": "true"}, RED),
        ("serving.prior_estimate.PriorEstimator.estimate", {"prior": "estimate"}, RED),
    ],
)
def test_v1(
    client: InProcess, stick: Callable[[str], None], slow: str, parameters: dict[str, str], image: bytes
) -> None:
    stick(slow)
    assert "0.5 seconds" in late(client, "/v1/classify", params=parameters, files={"image": image})


@pytest.mark.parametrize(
    ("slow", "body", "headers"),
    [
        ("decompress", gzip.compress(infer_body()), {"Content-Encoding": "gzip"}),
        ("parse_request", infer_body(MANY), {}),
        ("encode_answer", infer_body(MANY), {}),
        ("compress", infer_body(MANY), {"Accept-Encoding": "gzip"}),
    ],
)
def test_v2(client: InProcess, stick: Callable[[str], None], slow: str, body: bytes, headers: dict[str, str]) -> None:
    stick(f"serving.api.v2.infer.{slow}")
    assert "0.5 seconds" in late(client, "/v2/models/colours/infer", content=body, headers=headers)


def test_what_a_v2_client_allows_counts_from_the_arrival_of_the_body(
    client: InProcess, stick: Callable[[str], None]
) -> None:
    stick("serving.batching._predict")
    body = infer_body(parameters={"timeout": 50_000})
    assert "0.05 seconds" in late(client, "/v2/models/colours/infer", content=body)


def test_a_client_that_leaves_before_its_form_is_read_gives_its_place_back(
    start_server: Callable[..., Server], colours_path: Path
) -> None:
    stuck = f"import time, serving.images as i; i.parse_multipart = lambda *_: time.sleep({STUCK_SECONDS})"
    server = start_server(colours_path, "--threads", 1, "--decode-threads", 2, "--timeout", 600, prelude=stuck)
    form = b'--b\r\nContent-Disposition: form-data; name="image"\r\n\r\n' + LARGE + b"\r\n--b--\r\n"
    with connect(server) as connection:
        connection.sendall(head(form).replace(b"image/png", b"multipart/form-data; boundary=b") + form)
        wait_until_in_flight(server, 1)
    wait_until_in_flight(server, 0)
    assert 'cbn_requests_admitted{model="colours"} 0.0' in server.client.get("/metrics").text
    assert server.client.post("/v1/classify", content=RED, headers={"Content-Type": "image/png"}).status_code == 200
