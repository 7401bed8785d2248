"""Start the servers that are compared, each with the requests that it understands."""

from __future__ import annotations

import base64
import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from load_client import Call, http_request
from server_process import ServerProcess, free_port
from serving_workload import ImageFile, form

from cbn_deploy.native_library import native_library
from cbn_deploy.runtime.factory import open_session

__all__ = ["OURS", "RIVALS", "WORKERS", "UnavailableError", "start_cbn_serve", "start_rival"]

_FOLDER = Path(__file__).parent / "rivals"
_ROOT = Path(__file__).parents[1]
WORKERS = "cbn-serve --workers"
OURS = ("cbn-serve", WORKERS)
# name -> (script, package, path of a request, path that answers 200 when it is ready)
RIVALS = {
    "FastAPI, onnxruntime": ("plain_onnxruntime", "fastapi", "/classify", "/docs"),
    "FastAPI, async": ("plain_async", "fastapi", "/classify", "/docs"),
    "FastAPI, threads": ("plain_threads", "fastapi", "/classify", "/docs"),
    "LitServe": ("lit", "litserve", "/classify", "/health"),
    "MLServer": ("ml_server", "mlserver", "/v2/models/images/infer", "/v2/models/images/ready"),
}


class UnavailableError(Exception):
    """A server that cannot be measured here, and why."""


def start_cbn_serve(
    model: Path, images: Sequence[ImageFile], threads: int, folder: Path, workers: int = 1
) -> tuple[ServerProcess, list[Call]]:
    """cbn-serve with its default settings but the threads, which the workers share."""
    port = free_port()
    command = [sys.executable, "-c", "from serving.cli import main; main()", str(model), "--port", str(port)]
    each = str(max(1, threads // workers))
    command += ["--workers", str(workers), "--threads", each, "--decode-threads", each]
    server = ServerProcess(command, port, folder / f"cbn-serve-{workers}.log", "/v2/health/ready", folder=_ROOT)
    calls = [
        form("/v1/classify", image, f'"predictions":[{{"label":"{label}"'.encode())
        for image, label in zip(images, _labels(model, images), strict=True)
    ]
    return server, calls


def start_rival(
    name: str, model: Path, images: Sequence[ImageFile], threads: int, folder: Path, python: Path | None
) -> tuple[ServerProcess, list[Call]]:
    """One of ``RIVALS``.

    Raises:
        UnavailableError: its package is not installed, or it does not start.
    """
    script, package, path, ready = RIVALS[name]
    interpreter = _interpreter(package, python)
    library = native_library()
    port = free_port()
    environment = {
        "BENCH_MODEL": str(model.resolve()),
        "BENCH_THREADS": str(threads),
        "BENCH_PORT": str(port),
        "BENCH_PACKAGE": str(_ROOT / "cbn_deploy" if library is None else library.path.parents[2]),
        "PYTHONPATH": f"{_ROOT}:{_FOLDER}",
        "PYTHONWARNINGS": "ignore",
    }
    command = [interpreter, str(_FOLDER / f"{script}.py")]
    if package == "mlserver":
        start = "from mlserver.cli import main; main()"
        command = [interpreter, "-c", start, "start", str(_mlserver_folder(folder, port))]
    try:
        server = ServerProcess(command, port, folder / f"{script}.log", ready, environment)
    except RuntimeError as error:
        raise UnavailableError(str(error)) from error
    labels = _labels(model, images)
    if package == "mlserver":
        return server, [_mlserver_call(path, image, label) for image, label in zip(images, labels, strict=True)]
    calls = [
        form(path, image, f'{{"predictions":[{{"label":"{label}"'.encode())
        for image, label in zip(images, labels, strict=True)
    ]
    return server, calls


def _interpreter(package: str, python: Path | None) -> str:
    if package == "fastapi" or (python is None and importlib.util.find_spec(package)):
        return sys.executable
    if python is None:
        raise UnavailableError(f"{package} is not installed; --rivals-python names an interpreter that has it.")
    if subprocess.run([python, "-c", f"import {package}"], capture_output=True, check=False).returncode:
        raise UnavailableError(f"{python} cannot import {package}.")
    return str(python)


def _labels(model: Path, images: Sequence[ImageFile]) -> list[str]:
    names = open_session(model, threads=1).description.class_names
    return [names[int(image.logits.argmax())] for image in images]


def _mlserver_folder(folder: Path, port: int) -> Path:
    home = folder / "mlserver"
    home.mkdir(exist_ok=True)
    settings = {
        "host": "127.0.0.1",
        "http_port": port,
        "grpc_port": free_port(),
        "metrics_port": free_port(),
        "parallel_workers": 1,
        "metrics_dir": str(home / "metrics"),
        "debug": False,
    }
    model = {"name": "images", "implementation": "ml_server.ImageModel", "max_batch_size": 32, "max_batch_time": 0.002}
    (home / "settings.json").write_text(json.dumps(settings))
    (home / "model-settings.json").write_text(json.dumps(model))
    return home


def _mlserver_call(path: str, image: ImageFile, label: str) -> Call:
    text = base64.b64encode(image.content).decode()
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1, 1], "data": [text]}
    body = json.dumps({"inputs": [tensor]}).encode()
    return Call(http_request(path, body, "application/json"), f'"data":["{label}"]'.encode())
