"""The files of the two pages: their headers, their tags, and the examples' origin."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from serving.web import pages
from tests.serving.server import Server

STATIC = Path(pages.__file__).parent / "static"
EXAMPLES = sorted((STATIC / "examples").glob("*.png"))
OPEN = (
    "/",
    "/docs",
    "/web/page.css",
    "/web/page.js",
    "/web/icon.svg",
    "/web/swagger-ui-bundle.js",
    "/web/swagger-ui.css",
)


@pytest.mark.parametrize("path", [*OPEN, "/web/examples/LICENSE.txt", f"/web/examples/{EXAMPLES[0].name}"])
def test_files_come_with_headers_and_a_tag(server: Server, path: str) -> None:
    answer = server.client.get(path)
    assert answer.status_code == 200
    assert answer.content
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe-eval" not in policy
    assert "http" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    again = server.client.get(path, headers={"If-None-Match": f'"other", W/{answer.headers["etag"]}'})
    assert again.status_code == 304
    assert again.content == b""
    head = server.client.head(path)
    assert head.headers["content-length"] == str(len(answer.content))
    assert head.content == b""


def test_the_page_itself_may_run_nothing_inline(server: Server) -> None:
    policy = server.client.get("/").headers["content-security-policy"]
    assert "unsafe" not in policy
    assert "require-trusted-types-for 'script'" in policy
    text = (STATIC / "index.html").read_text()
    assert not re.search(r"<script(?![^>]* src=)|<style|\son\w+=|\sstyle=|https?://", text)
    scripts = "".join(path.read_text() for path in STATIC.glob("*.js"))
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|https?://", scripts)


@pytest.mark.parametrize(
    "path", ["/web/", "/web/absent.js", "/web/index.html", "/web/../pages.py", "/web/%2e%2e/pages.py"]
)
def test_there_are_no_other_files(server: Server, path: str) -> None:
    answer = server.client.get(path)
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"


def test_the_pages_need_no_key(start_server: Callable[..., Server], colours_path: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("secret\n")
    guarded = start_server(colours_path, "--api-key-file", keys, "--threads", 1)
    for path in OPEN:
        assert guarded.client.get(path).status_code == 200
    assert guarded.client.get("/v1/models").status_code == 401


def test_the_examples_are_test_images_of_digits_lt() -> None:
    pytest.importorskip("sklearn")
    from cbn_deploy.data.digits import load_digits_lt

    test = load_digits_lt().test
    assert len(EXAMPLES) == 8
    for path in EXAMPLES:
        small = Image.open(io.BytesIO(path.read_bytes()))
        assert small.size == (8, 8)
        pixels = np.asarray(small.convert("RGB").resize((32, 32), Image.Resampling.BICUBIC))
        digit = int(path.stem.removeprefix("digit-"))
        same = [index for index in np.flatnonzero(test.labels == digit) if np.array_equal(test.pixels(index), pixels)]
        assert same, path.name
