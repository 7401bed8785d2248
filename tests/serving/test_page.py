"""The page at ``/`` in a real browser, before a real server with a real CBN model."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from serving.web import pages
from tests.serving.browser import Visit, answer_of, choose_digits, png, ranking_of
from tests.serving.files import BLUE, RED
from tests.serving.server import Server

DIGIT = Path(pages.__file__).parent / "static" / "examples" / "digit-3.png"


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


def test_the_last_question_is_the_one_that_is_answered(visit: Callable[..., Visit], cbn_server: Server) -> None:
    one = visit()
    choose_digits(one)
    one.page.set_input_files("#file", png(content=BLUE))
    for _ in range(3):
        for prior in ("Uniform", "Training", "As trained", "Uniform"):
            one.page.get_by_label(prior).check(force=True)
    one.page.get_by_text("all equally").wait_for()
    one.classified()
    assert one.ranking() == ranking_of(answer_of(cbn_server, BLUE, model="digits", prior="uniform"))
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
