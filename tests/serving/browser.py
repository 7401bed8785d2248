"""A real headless Chromium, and what a visit to a page of ours made it say and fetch."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.serving.files import RED
from tests.serving.server import Server

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WAIT_MS = 60_000  # on a busy machine

# Text that is shown, with the contrast to what lies behind it, after WCAG 2.
CONTRASTS = """
() => {
  const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const linear = (value) => (value <= 10.3 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4);
  const luminance = ([red, green, blue]) => 0.2126 * linear(red) + 0.7152 * linear(green) + 0.0722 * linear(blue);
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = channels(getComputedStyle(at).backgroundColor);
      if (colour.length < 4 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const found = [];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || !element.checkVisibility() || element.closest("noscript")) continue;
    const [one, other] = [luminance(channels(getComputedStyle(element).color)), luminance(behind(element))];
    found.push([texts.currentNode.data.trim(), (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05)]);
  }
  return found;
}
"""


def find_chromium() -> str:
    """Path of the browser; without one the test is skipped."""
    pytest.importorskip("playwright", reason="playwright is not installed")
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed, and CHROMIUM names none")
    return path


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser, closed at the end."""
    path = find_chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path)
        try:
            yield browser
        finally:
            browser.close()


class Visit:
    """One page in a context of its own: ``page``, what its console said, and whom it asked for anything."""

    def __init__(self, browser: Any, url: str, **options: Any) -> None:
        self.context = browser.new_context(**{"viewport": {"width": 1200, "height": 900}, **options})
        self.context.set_default_timeout(WAIT_MS)
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.asked: set[str] = set()
        # From now on, or a dialog that opens at once would be missed.
        self.page.on("filechooser", lambda _: None)
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.add(request.url))
        self.page.goto(url)
        self.page.wait_for_load_state("networkidle")

    def hosts(self) -> set[str]:
        """Of the requests; pictures that the page holds itself have none."""
        return {urlsplit(url).netloc for url in self.asked} - {""}

    def classified(self) -> None:
        """Wait for an answer to be on the page."""
        self.page.get_by_role("heading", name="Ranking").wait_for()
        self.page.wait_for_selector("#answer:not([aria-busy])")

    def ranking(self) -> list[tuple[str, str, str]]:
        """Label, shot group and probability as the page writes them, best first."""
        return [
            tuple(row.locator(part).inner_text() for part in (".label", ".badge", ".number"))  # type: ignore[misc]
            for row in self.page.locator("ol.ranking > li").all()
        ]

    def overflows(self) -> bool:
        """Whether it scrolls sideways."""
        return bool(self.page.evaluate("document.documentElement.scrollWidth > innerWidth"))

    def contrasts(self) -> dict[str, float]:
        """Text -> its contrast, the least where a text occurs more often."""
        found: dict[str, float] = {}
        for text, contrast in self.page.evaluate(CONTRASTS):
            found[text] = min(contrast, found.get(text, 21.0))
        return found

    def nameless(self) -> list[Any]:
        """The controls of the accessibility tree that have no name."""
        tree = self.context.new_cdp_session(self.page).send("Accessibility.getFullAXTree")
        controls = {"button", "checkbox", "combobox", "link", "radio", "slider", "textbox", "image", "group", "list"}
        return [
            entry
            for entry in tree["nodes"]
            if not entry["ignored"]
            and entry["role"]["value"] in controls
            and not entry.get("name", {}).get("value", "").strip()
        ]


def written(probability: float) -> str:
    """A probability as the page writes it."""
    if 0 < probability < 0.0005:
        return "< 0.1 %"
    if 0.9995 <= probability < 1:
        return "> 99.9 %"
    return f"{100 * probability:.1f} %"


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
