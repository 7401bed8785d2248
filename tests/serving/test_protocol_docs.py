"""What docs/protocol.md shows works as it is printed there."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cbn_deploy.runtime import Preprocessing
from serving.api.v2.metadata import EXTENSIONS
from tests.onnx_models import colour_model, describe, write_colour_model
from tests.serving.files import colour
from tests.serving.server import ROOT, Server

PAGE = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`cbn-serve model.onnx` for images of 32 x 32 pixels."""
    description = describe(preprocessing=Preprocessing(height=32, width=32))
    model = colour_model(description=description, size=32)
    server = Server(write_colour_model(tmp_path_factory.mktemp("docs") / "model.onnx", model), "--threads", 1)
    yield server
    server.stop()


def example(language: str, server: Server) -> str:
    (code,) = re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    assert "127.0.0.1:8000" in code
    return code.replace("127.0.0.1:8000", server.url.removeprefix("http://"))


def test_the_shell_example(page_server: Server) -> None:
    if not shutil.which("curl"):
        pytest.skip("curl is not installed")
    command = "set -e\n" + example("sh", page_server).replace("curl -s", "curl -sS --fail -w '\\n'")
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    ready, metadata, answer = map(json.loads, done.stdout.splitlines())
    assert ready == {"ready": True}
    assert metadata["inputs"][0]["shape"] == [-1, 3, 32, 32]
    assert answer["outputs"][0]["data"] == ["5.0:0:red", "5.0:1:green", "5.0:2:blue"]


def test_the_python_example(page_server: Server, tmp_path: Path) -> None:
    pytest.importorskip("tritonclient.http", reason="tritonclient[http] is not installed")
    (tmp_path / "photo.jpg").write_bytes(colour(30, 30, 220, "JPEG"))
    code = example("python", page_server) + "\nassert abs(logits - 5).max() < 1e-4\n"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("blue ")


def test_every_path_is_on_the_page_and_served(page_server: Server) -> None:
    served = {
        path.replace("{model}/versions/{version}", "{model}").replace("models/{model}/load", "models/{name}/load")
        for path in page_server.client.get("/openapi.json").json()["paths"]
        if path.startswith("/v2")
    }
    for path in served - {"/v2/repository/models/{model}/unload"}:
        assert f"{path}`" in PAGE, path
    assert set(page_server.client.get("/v2").json()["extensions"]) == set(EXTENSIONS)
