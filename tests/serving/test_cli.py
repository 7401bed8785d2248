"""``cbn-serve``: what it refuses to start with, and what it starts with."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.onnx_models import colour_model, write_colour_model
from tests.serving.files import RED
from tests.serving.server import PROGRAM, ROOT, Server


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("CBN_")}
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, arguments)],
        cwd=ROOT,
        env={**clean, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def assert_one_sentence(done: subprocess.CompletedProcess[str], says: str) -> None:
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_help_has_examples() -> None:
    done = run("--help")
    assert done.returncode == 0
    assert "cbn-serve model.onnx" in done.stdout
    assert "CBN_MAX_QUEUE" in done.stdout


def test_settings_that_cannot_work(colours_path: Path, tmp_path: Path) -> None:
    assert_one_sentence(run(), "cbn-serve MODEL.onnx")
    assert_one_sentence(run(colours_path, "--max-queue", 0), "--max-queue")
    assert_one_sentence(run(colours_path, CBN_PORT="http"), "CBN_PORT")
    assert_one_sentence(run(colours_path, "--api-key-file", tmp_path / "absent"), "cannot be read")


def test_models_that_cannot_be_served(colours_path: Path, tmp_path: Path) -> None:
    assert_one_sentence(run(tmp_path / "absent.onnx"), "does not exist")
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(colours_path.read_bytes()[:-100])
    assert_one_sentence(run(colours_path, cut), "truncated")
    broken = write_colour_model(tmp_path / "nan.onnx", colour_model(broken_weight=float("nan")))
    assert_one_sentence(run(broken), "finite")


def test_a_taken_port(colours_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert_one_sentence(run(colours_path, "--port", port), f"127.0.0.1:{port}")


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_flags_beat_the_environment(start_server: Callable[..., Server], colours_path: Path, runtime: str) -> None:
    environment = {"CBN_MODELS": f"tints={colours_path}", "CBN_RUNTIME": "torch", "CBN_THREADS": "1"}
    server = start_server("--runtime", runtime, environment=environment)
    (model,) = server.client.get("/v1/models").json()["models"]
    assert (model["name"], model["runtime"], model["threads"]) == ("tints", runtime, 1)
    answer = server.client.post("/v1/classify", files={"image": RED}).json()
    assert answer["results"][0]["predictions"][0]["label"] == "red"


def test_the_configuration_can_be_printed_and_used_again(tmp_path: Path, colours_path: Path) -> None:
    file = tmp_path / "cbn.toml"
    file.write_text('max_queue = 3\nmax_batch = 5\nhost = "0.0.0.0"\n')
    arguments = [f"tints={colours_path}", "--config", file, "--max-batch", 7, "--print-config"]
    done = run(*arguments, CBN_MAX_DELAY="0.5")
    assert done.returncode == 0, done.stderr
    for line in (
        "max_queue = 3  # file",
        "max_batch = 7  # --max-batch",
        "max_delay = 0.5  # CBN_MAX_DELAY",
        "max_images = 32  # default",
        f'models = ["tints={colours_path}"]  # --models',
        "# api_key_file =  # default",
    ):
        assert line in done.stdout.splitlines()
    file.write_text(done.stdout)
    again = run("--config", file, "--print-config")
    values = [[line.partition("  #")[0] for line in text.splitlines()] for text in (done.stdout, again.stdout)]
    assert values[0] == values[1]


def test_settings_of_the_file_and_a_misspelt_variable(
    start_server: Callable[..., Server], colours_path: Path, tmp_path: Path
) -> None:
    file = tmp_path / "cbn.toml"
    file.write_text(f'models = ["tints={colours_path}"]\nthreads = 1\n')
    environment = {"CBN_CONFIG": str(file), "CBN_MAX_QEUE": "3"}
    server = start_server(environment=environment)
    assert server.client.get("/v1/models").json()["models"][0]["name"] == "tints"
    assert [line["message"] for line in server.log if line["level"] == "warning"] == [
        "CBN_MAX_QEUE is no setting; did you mean max_queue."
    ]
    assert_one_sentence(run("--config", tmp_path / "absent.toml"), "cannot be read")
