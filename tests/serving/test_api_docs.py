"""docs/api.md is true: its commands are run against a real server, and the answers have the fields that it shows."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cbn_deploy.runtime.description import ENERGY_LEVELS
from tests.onnx_models import colour_model, describe, write_colour_model
from tests.serving.files import colour
from tests.serving.server import ROOT, Server

PAGE = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
# A command, and the answer if one is shown right after it.
EXAMPLES = re.findall(r"```sh\n(.*?)\n```(?:\n\n```json\n(.*?)\n```)?", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def documented(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    levels = np.array(ENERGY_LEVELS)
    description = describe(temperature=2.0, energy_quantiles={"all": tuple((levels - 9).tolist())})
    model = colour_model(description=description, with_posterior=True)
    running = Server(write_colour_model(tmp_path_factory.mktemp("docs") / "colours.onnx", model), "--threads", 1)
    yield running
    running.stop()


def assert_shows(shown: Any, actual: Any, where: str = "answer", whole: bool = False) -> None:
    """Every field that the page shows is in the answer, with a value of the same kind; ``whole``: and no other is."""
    if isinstance(shown, dict):
        assert isinstance(actual, dict), where
        assert set(shown) == set(actual) if whole else set(shown) <= set(actual), where
        for name, value in shown.items():
            assert_shows(value, actual[name], f"{where}.{name}", whole)
    elif isinstance(shown, list):
        assert isinstance(actual, list), where
        assert actual, where
        for index, value in enumerate(shown):
            assert_shows(value, actual[index], f"{where}[{index}]", whole)
    else:
        assert isinstance(actual, type(shown)), f"{where}: {actual!r}"


@pytest.mark.parametrize(("command", "answer"), EXAMPLES, ids=[command for command, _ in EXAMPLES])
def test_an_example(documented: Server, tmp_path: Path, command: str, answer: str) -> None:
    (tmp_path / "photo.jpg").write_bytes(colour(220, 30, 30, "JPEG"))
    (tmp_path / "unlike.jpg").write_bytes(colour(100, 100, 100, "JPEG"))
    command = command.replace("http://127.0.0.1:8000", documented.url).replace(
        "curl ", "curl --silent --show-error ", 1
    )
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
    actual = json.loads(done.stdout)
    if "models" in actual:
        assert_shows(json.loads(answer), actual, whole=True)
    elif answer:
        assert_shows(json.loads(answer), actual, whole=command.endswith("top_k=2'"))
    else:
        assert "detail" not in actual


def test_the_page_documents_every_parameter_and_status(documented: Server) -> None:
    operation = documented.client.get("/openapi.json").json()["paths"]["/v1/classify"]["post"]
    rows = set(re.findall(r"^\| `?(\w+)`? \|", PAGE, re.MULTILINE)) - {"parameter", "status"}
    parameters = {parameter["name"] for parameter in operation["parameters"] if parameter["in"] == "query"}
    statuses = set(operation["responses"]) - {"200"}
    assert rows == parameters | statuses | {"405"}
