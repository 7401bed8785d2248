"""The page at ``/`` in a real browser, before a real server with a real CBN model."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from cbn_deploy.runtime.description import ENERGY_LEVELS, Preprocessing
from serving.web import pages
from tests.onnx_models import colour_model, describe, write_colour_model
from tests.serving.browser import Visit, chromium, written
from tests.serving.files import BLUE, RED, colour, encode
from tests.serving.server import Server

DIGIT = Path(pages.__file__).parent / "static" / "examples" / "digit-3.png"
EVIL = "<img src=x onerror=\"document.title='evil'\">"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.fixture
def visit(browser: Any, cbn_server: Server) -> Iterator[Callable[..., Visit]]:
    """Open the page of the server of both models, or another address; nobody else may be asked for anything."""
    visits: list[Visit] = []

    def open_page(url: str | None = None, **options: Any) -> Visit:
        visits.append(Visit(browser, url or f"{cbn_server.url}/", **options))
        return visits[-1]

    yield open_page
    for one in visits:
        hosts = one.hosts()
        one.context.close()
        assert len(hosts) == 1, hosts


def png(name: str = "image.png", content: bytes = RED) -> dict[str, Any]:
    return {"name": name, "mimeType": "image/png", "buffer": content}


def answer_of(server: Server, content: bytes, **params: Any) -> dict[str, Any]:
    response = server.client.post("/v1/classify", params=params, files={"image": content})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def ranking_of(answer: dict[str, Any]) -> list[tuple[str, str, str]]:
    predictions = answer["results"][0]["predictions"]
    return [(one["label"], f"{one['shot_group']}-shot", written(one["probability"])) for one in predictions]


def choose_digits(one: Visit) -> None:
    one.page.get_by_label("Model", exact=True).select_option("digits")


def test_everything_from_the_keyboard(visit: Callable[..., Visit], cbn_server: Server, tmp_path: Path) -> None:
    path = tmp_path / "a photo.png"
    path.write_bytes(RED)
    one = visit()
    keyboard = one.page.keyboard
    for _ in range(10):
        keyboard.press("Tab")
        if one.page.evaluate("document.activeElement.id") == "file":
            break
    assert one.page.evaluate("getComputedStyle(document.querySelector('.drop label')).outlineStyle") == "solid"
    for key in ("Space", "Enter"):
        with one.page.expect_file_chooser() as chooser:
            keyboard.press(key)
        chooser.value.set_files(path)
        one.classified()
    assert one.ranking() == ranking_of(answer_of(cbn_server, RED, model="colours"))
    assert "red" in one.page.locator("#status").inner_text()

    for _ in range(40):
        keyboard.press("Tab")
        if one.page.evaluate("document.activeElement.name") == "prior":
            break
    keyboard.press("ArrowRight")
    one.page.get_by_text("all equally").wait_for()
    assert one.ranking() == ranking_of(answer_of(cbn_server, RED, model="colours", prior="uniform"))
    assert one.said == []


def test_an_example_and_the_maps_of_its_layers(visit: Callable[..., Visit], cbn_server: Server) -> None:
    one = visit()
    assert not one.page.locator("#examples").is_visible()  # no digits for a model of colours
    choose_digits(one)
    example = one.page.get_by_role("button", name="Handwritten 3")
    example.focus()
    one.page.keyboard.press("Enter")
    one.classified()
    expected = answer_of(cbn_server, DIGIT.read_bytes(), model="digits", explain=True)
    assert one.ranking() == ranking_of(expected)
    assert example.get_attribute("aria-pressed") == "true"

    layers = expected["results"][0]["explanation"]["maps"]
    shown = one.page.locator("img.map")
    assert one.page.locator(".thumbnails button").count() == len(layers)
    assert len(layers) > 10
    slider = one.page.get_by_role("slider")
    for number, press in ((0, None), (1, "ArrowRight"), (len(layers) - 1, "End")):
        if press:
            slider.press(press)
        assert shown.get_attribute("src") == f"data:image/png;base64,{layers[number]['png']}"
        assert slider.get_attribute("aria-valuetext") == layers[number]["layer"]
        one.page.wait_for_function("document.querySelector('img.map').naturalWidth > 0")
    shares = expected["results"][0]["occupancy"][layers[-1]["layer"]]
    assert one.page.locator(".shares b").all_inner_texts() == [f"{100 * share:.0f} %" for share in shares]

    one.page.get_by_label("Show which Gaussian").uncheck()
    one.page.wait_for_selector("img.map", state="detached")
    assert one.said == []


def test_time_is_split(visit: Callable[..., Visit]) -> None:
    one = visit()
    with one.page.expect_response("**/v1/classify*") as answered:
        one.page.set_input_files("#file", png())
    one.classified()
    timing = answered.value.json()["timing"]
    keys = dict(text.rsplit(" ", 2)[:2] for text in one.page.locator(".keys li").all_inner_texts())
    for stage in ("decode", "queue", "inference"):
        assert float(keys[stage.capitalize()]) == pytest.approx(timing[f"{stage}_ms"], abs=0.051)


@pytest.mark.parametrize("name", ["image.png", 'it\'s "1", $(no);.png'])
def test_the_command_does_the_same(visit: Callable[..., Visit], cbn_server: Server, tmp_path: Path, name: str) -> None:
    one = visit()
    choose_digits(one)
    one.page.get_by_label("Uniform").check(force=True)
    one.page.set_input_files("#file", png(name, BLUE))
    one.classified()
    (tmp_path / name).write_bytes(BLUE)
    command = one.page.get_by_label("Command").inner_text()
    done = run_shell(command, tmp_path)
    assert ranking_of(json.loads(done)) == one.ranking()
    assert "prior=uniform" in command


def test_the_command_of_an_example_fetches_it(visit: Callable[..., Visit], tmp_path: Path) -> None:
    one = visit()
    choose_digits(one)
    one.page.get_by_role("button", name="Handwritten 9").click()
    one.classified()
    done = run_shell(one.page.get_by_label("Command").inner_text(), tmp_path)
    assert ranking_of(json.loads(done)) == one.ranking()


def run_shell(command: str, folder: Path) -> bytes:
    try:
        subprocess.run(["curl", "--version"], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("curl is not installed")
    return subprocess.run(["sh", "-c", command], cwd=folder, check=True, capture_output=True).stdout


def test_copying_the_command(visit: Callable[..., Visit]) -> None:
    one = visit(permissions=["clipboard-read", "clipboard-write"])
    one.page.set_input_files("#file", png())
    one.classified()
    one.page.get_by_role("button", name="Copy").press("Enter")
    one.page.get_by_text("Copied.").wait_for()
    assert one.page.evaluate("navigator.clipboard.readText()") == one.page.get_by_label("Command").inner_text()


@pytest.mark.parametrize("event", ["drop", "paste"])
def test_dropped_and_pasted_images(visit: Callable[..., Visit], cbn_server: Server, event: str) -> None:
    one = visit()
    one.page.evaluate(
        """([event, bytes]) => {
          const given = new DataTransfer();
          given.items.add(new File([new Uint8Array(bytes)], "given.png", {type: "image/png"}));
          const made = event === "drop" ? new DragEvent(event, {dataTransfer: given, bubbles: true, cancelable: true})
            : new ClipboardEvent(event, {clipboardData: given, bubbles: true});
          document.body.dispatchEvent(made);
        }""",
        [event, list(BLUE)],
    )
    one.classified()
    assert one.ranking() == ranking_of(answer_of(cbn_server, BLUE, model="colours"))


def test_a_wrong_file_gets_the_servers_sentence_and_the_next_image_an_answer(
    visit: Callable[..., Visit], cbn_server: Server
) -> None:
    one = visit()
    one.page.set_input_files("#file", {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"no image"})
    one.page.get_by_role("alert").wait_for()
    refused = cbn_server.client.post("/v1/classify", params={"model": "colours"}, files={"image": b"no image"})
    assert one.page.locator("#problem-text").inner_text() == refused.json()["detail"]
    assert "415" in one.page.locator("#problem-title").inner_text()
    one.page.set_input_files("#file", png())
    one.classified()
    assert not one.page.get_by_role("alert").is_visible()


def test_a_server_that_is_gone_gets_a_sentence(
    visit: Callable[..., Visit], start_server: Callable[..., Server], colours_path: Path
) -> None:
    server = start_server(colours_path, "--threads", 1)
    one = visit(f"{server.url}/")
    server.stop()
    one.page.set_input_files("#file", png())
    one.page.get_by_text("cannot be reached").wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_light_and_dark(visit: Callable[..., Visit], scheme: str) -> None:
    one = visit(color_scheme=scheme)
    ground = one.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (int(ground[4:].split(",")[0]) < 64) == (scheme == "dark")
    choose_digits(one)
    one.page.get_by_role("button", name="Handwritten 5").click()
    one.classified()
    low = {text: ratio for text, ratio in one.contrasts().items() if ratio < 4.5}
    one.page.set_input_files("#file", png(content=b"no image"))
    one.page.get_by_role("alert").wait_for()
    low |= {text: ratio for text, ratio in one.contrasts().items() if ratio < 4.5}
    assert low == {}


@pytest.mark.parametrize("width", [320, 360, 1200])
def test_nothing_scrolls_sideways(visit: Callable[..., Visit], width: int) -> None:
    one = visit(viewport={"width": width, "height": 740}, reduced_motion="reduce")
    assert not one.overflows()
    choose_digits(one)
    one.page.set_input_files("#file", png("a-rather-long-file-name-without-a-space-in-it-at-all-of-a-photo.png"))
    one.classified()
    assert not one.overflows()
    if width < 900:  # the answer lies below the options: the page goes there
        one.page.wait_for_function("document.getElementById('answer').getBoundingClientRect().top < 100")


def test_controls_have_names(visit: Callable[..., Visit]) -> None:
    one = visit()
    choose_digits(one)
    one.page.get_by_role("button", name="Handwritten 2").click()
    one.classified()
    assert one.nameless() == []


def test_motion_is_left_out_where_it_is_not_wanted(visit: Callable[..., Visit]) -> None:
    style = "getComputedStyle(document.querySelector('.drop label')).transitionProperty"
    assert visit(reduced_motion="reduce").page.evaluate(style) == "none"
    assert visit(reduced_motion="no-preference").page.evaluate(style) != "none"


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
    one.page.get_by_text(sentence).wait_for()
    field.fill("right-key")
    field.press("Enter")
    field.wait_for(state="hidden")
    one.page.set_input_files("#file", png())
    one.classified()
    assert 'X-API-Key: $CBN_API_KEY"' in one.page.get_by_label("Command").inner_text()
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
