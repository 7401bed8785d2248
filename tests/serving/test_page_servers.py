"""The pages before servers of every kind: strange models, none, one that wants a key, one behind a proxy."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from cbn_deploy.runtime.description import ENERGY_LEVELS, Preprocessing
from tests.onnx_models import colour_model, describe, write_colour_model
from tests.serving.browser import Visit, answer_of, choose_digits, png, ranking_of
from tests.serving.files import RED, colour, encode
from tests.serving.server import Server

EVIL = "<img src=x onerror=\"document.title='evil'\">"


@pytest.fixture
def strange_server(start_server: Callable[..., Server], tmp_path: Path) -> Server:
    """The colour model, calibrated, with markup for labels, and for which everything is too unlike what it knows."""
    quantiles = {"all": tuple(-100.0 + level for level in ENERGY_LEVELS)}
    names = (EVIL, "green & <b>blue</b>", "blue")
    description = describe(temperature=2.0, energy_quantiles=quantiles, class_names=names)
    return start_server(write_colour_model(tmp_path / "m.onnx", colour_model(description=description)), "--threads", 1)


def test_labels_are_text_and_a_rejected_image_is_said_to_be(
    visit: Callable[..., Visit], strange_server: Server
) -> None:
    one = visit(f"{strange_server.url}/")
    one.page.set_input_files("#file", png(f"{EVIL}.png"))
    one.classified()
    expected = answer_of(strange_server, RED, reject=True)
    assert one.ranking() == ranking_of(expected)
    assert one.ranking()[0][0] == EVIL
    assert one.page.title() == "cbn-serve"
    assert one.page.locator(".verdict").inner_text() == f"Rejected. {expected['results'][0]['reject_reason']}"
    assert "Rejected" in one.page.locator("#status").inner_text()
    assert one.page.locator(".facts").inner_text().count("calibrated") == 1
    assert "not calibrated" not in one.page.locator(".facts").inner_text()
    assert one.said == []


@pytest.mark.parametrize(("shorter", "left", "top"), [(10, -6, -1), (None, 0, 0)])
def test_the_image_lies_under_its_maps_as_the_model_saw_it(
    visit: Callable[..., Visit],
    start_server: Callable[..., Server],
    tmp_path: Path,
    shorter: int | None,
    left: int,
    top: int,
) -> None:
    """40 x 20 pixels, 20 x 10 after the resize, of which 8 x 8 see the centre: 6 columns and a row are cut off."""
    description = describe(preprocessing=Preprocessing(height=8, width=8, resize_shorter=shorter))
    model = colour_model(description=description, with_posterior=True)
    server = start_server(write_colour_model(tmp_path / "m.onnx", model), "--threads", 1)
    one = visit(f"{server.url}/")
    one.page.set_input_files("#file", png(content=encode(np.zeros((20, 40, 3), dtype=np.uint8))))
    one.classified()
    one.page.wait_for_function("document.querySelector('div.map img').naturalWidth > 0")
    frame = one.page.locator("div.map").bounding_box()
    image = one.page.locator("div.map img").bounding_box()
    assert frame is not None
    assert image is not None
    pixel = frame["width"] / 8
    assert image["x"] - frame["x"] == pytest.approx(left * pixel, abs=0.5)
    assert image["y"] - frame["y"] == pytest.approx(top * pixel, abs=0.5)
    assert image["width"] == pytest.approx((8 - 2 * left) * pixel, abs=0.5)
    assert one.page.get_by_role("slider").count() == 0  # there is one layer


def test_a_model_that_becomes_ready_appears(
    visit: Callable[..., Visit], start_server: Callable[..., Server], tmp_path: Path
) -> None:
    (tmp_path / "colours.onnx").write_bytes(b"not yet")
    server = start_server("--model-repository", tmp_path, "--watch-interval", 0.2, "--threads", 1)
    one = visit(f"{server.url}/")
    one.page.get_by_text("No model is ready. colours:").wait_for()
    write_colour_model(tmp_path / "colours.onnx")
    one.page.get_by_text("3 labels").wait_for()
    one.page.set_input_files("#file", png())
    one.classified()


def test_a_model_that_cannot_answer_is_named_beside_one_that_does(
    visit: Callable[..., Visit], start_server: Callable[..., Server], tmp_path: Path
) -> None:
    write_colour_model(tmp_path / "colours.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"not a model")
    one = visit(f"{start_server('--model-repository', tmp_path, '--threads', 1).url}/")
    one.page.get_by_text("3 labels").wait_for()
    said = one.page.get_by_text("Not answering: broken:").inner_text()
    assert "not an ONNX file" in said
    assert str(tmp_path) not in said


def test_a_slow_answer_is_announced(visit: Callable[..., Visit], strange_server: Server) -> None:
    one = visit(f"{strange_server.url}/")
    held: list[Any] = []
    one.page.route("**/v1/classify*", lambda route: held.append(route))
    one.page.set_input_files("#file", png())
    one.page.locator("#status", has_text="Waiting for the answer.").wait_for(state="attached")
    one.page.wait_for_selector("#answer[aria-busy=true]")
    held[0].continue_()
    one.classified()
    assert "-shot" in one.page.locator("#status").inner_text()


def test_an_estimate_says_what_it_rests_on(visit: Callable[..., Visit], strange_server: Server) -> None:
    one = visit(f"{strange_server.url}/")
    one.page.get_by_label("Estimate").check(force=True)
    one.page.set_input_files("#file", png())
    one.page.get_by_text("an estimate needs").wait_for()
    for index in range(30):
        images = [("image", colour(200 + index, 30, 30 + number)) for number in range(32)]
        strange_server.client.post("/v1/classify", files=images).raise_for_status()
    one.page.set_input_files("#file", png())
    one.page.get_by_text("estimated from").wait_for()


def test_a_key_is_asked_for_and_kept_in_the_tab_alone(
    visit: Callable[..., Visit], start_server: Callable[..., Server], colours_path: Path, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("right-key\n")
    server = start_server(colours_path, "--api-key-file", keys, "--threads", 1)
    one = visit(f"{server.url}/")
    sentence = server.client.get("/v1/models").json()["detail"]
    one.page.get_by_text(sentence).wait_for()
    field = one.page.get_by_label("Key", exact=True)
    assert one.page.evaluate("document.activeElement.id") == "key"
    field.fill("wrong key")
    field.press("Enter")
    one.page.get_by_text("no spaces").wait_for()
    field.fill("wrong-key")
    field.press("Enter")
    one.page.get_by_text("does not take this key").wait_for()
    assert one.page.evaluate("sessionStorage.length") == 0
    field.fill("right-key")
    field.press("Enter")
    field.wait_for(state="hidden")
    one.page.set_input_files("#file", png())
    one.classified()
    assert 'X-API-Key: $CBN_API_KEY"' in one.page.get_by_label("Command").inner_text()
    assert one.page.get_by_text("CBN_API_KEY is a variable").is_visible()
    assert "right-key" not in one.page.content()
    assert one.page.evaluate("localStorage.length") == 0
    assert one.page.evaluate("document.cookie") == ""
    one.page.reload()
    one.page.set_input_files("#file", png())
    one.classified()


class _Prefix(BaseHTTPRequestHandler):
    """A reverse proxy that serves ``target`` under ``/some/prefix/``."""

    target = ""

    def do_GET(self) -> None:
        self.do_POST()

    def do_POST(self) -> None:
        if not self.path.startswith("/some/prefix/"):
            self.send_error(404)
            return
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        headers = {name: self.headers[name] for name in ("content-type", "x-api-key") if name in self.headers}
        url = self.target + self.path.removeprefix("/some/prefix")
        answer = httpx.request(self.command, url, content=body, headers=headers, timeout=60, trust_env=False)
        self.send_response(answer.status_code)
        for name in ("content-type", "content-security-policy"):
            if name in answer.headers:
                self.send_header(name, answer.headers[name])
        self.send_header("content-length", str(len(answer.content)))
        self.end_headers()
        self.wfile.write(answer.content)

    def log_message(self, *_: object) -> None:
        """The tests' output is no place for it."""


@pytest.fixture
def prefixed(cbn_server: Server) -> Iterator[str]:
    handler = type("Handler", (_Prefix,), {"target": cbn_server.url})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as proxy:
        thread = threading.Thread(target=proxy.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{proxy.server_port}/some/prefix/"
        proxy.shutdown()
        thread.join()


def test_both_pages_work_under_a_prefix(visit: Callable[..., Visit], prefixed: str, tmp_path: Path) -> None:
    one = visit(prefixed)
    choose_digits(one)
    one.page.get_by_role("button", name="Handwritten 0").click()
    one.classified()
    assert f"{prefixed}v1/classify" in one.page.get_by_label("Command").inner_text()
    one.page.get_by_role("link", name="API", exact=True).click()
    one.page.get_by_text("/v1/models").first.wait_for()
    one.page.get_by_text("/v1/models").first.click()
    one.page.get_by_role("button", name="Try it out").click()
    with one.page.expect_response(f"{prefixed}v1/models") as answered:
        one.page.get_by_role("button", name="Execute").click()
    assert answered.value.json()["models"]
    assert one.said == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_docs_need_nobody_else(visit: Callable[..., Visit], cbn_server: Server, scheme: str) -> None:
    one = visit(f"{cbn_server.url}/docs", color_scheme=scheme)
    one.page.get_by_text("/v1/classify").first.wait_for()
    red = one.page.evaluate("getComputedStyle(document.documentElement).backgroundColor").strip("rgba()").split(",")[0]
    assert (red == "28") == (scheme == "dark")
    assert one.said == []
