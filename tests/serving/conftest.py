"""Models and servers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from serving.app import create_app
from serving.inference import InferencePool
from serving.models import ModelRegistry
from serving.settings import load_settings
from tests.onnx_models import colour_model, spin_for, write_colour_model
from tests.serving.browser import Visit, chromium
from tests.serving.in_process import InProcess
from tests.serving.model_folders import Start
from tests.serving.server import Server


@pytest.fixture(scope="session")
def colours_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The colour model: its right answers are known by hand."""
    return write_colour_model(tmp_path_factory.mktemp("colours") / "colours.onnx")


@pytest.fixture(scope="session")
def slow_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The colour model, taking about a second a run."""
    return write_colour_model(tmp_path_factory.mktemp("slow") / "slow.onnx", colour_model(spin=spin_for(1.0)))


@pytest.fixture(scope="session")
def cbn_path(checkpoint_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real CBN ResNet-20, exported with its posteriors."""
    pytest.importorskip("torch")
    from export import ExportOptions, export_checkpoint

    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    return export_checkpoint(checkpoint_path, path, ExportOptions(with_posterior=True, inputs=32)).path


@pytest.fixture(scope="session")
def server(colours_path: Path) -> Iterator[Server]:
    """The colour model with small limits: 100,000 bytes, 10,000 pixels, 4 images, 1 second for a body."""
    limits = ["--max-upload-bytes", 100_000, "--max-pixels", 10_000, "--max-images", 4, "--upload-timeout", 1]
    running = Server(colours_path, "--threads", 1, *limits)
    yield running
    running.stop()


@pytest.fixture(scope="session")
def cbn_server(cbn_path: Path, colours_path: Path) -> Iterator[Server]:
    """A real CBN model called digits, and the colour model beside it."""
    running = Server(f"digits={cbn_path}", colours_path, "--threads", 1)
    yield running
    running.stop()


@pytest.fixture
def start_app(colours_path: Path) -> Iterator[Callable[..., InProcess]]:
    """Applications of the colour model with settings of the test's own, in this process; all are closed afterwards."""
    running: list[InProcess] = []

    def start(**settings: object) -> InProcess:
        chosen = load_settings(models=[str(colours_path)], threads=1, watch_interval=0, **settings)
        running.append(InProcess(create_app(chosen)))
        return running[-1]

    yield start
    for client in running:
        client.close()


@pytest.fixture
def start_server() -> Iterator[Callable[..., Server]]:
    """Start servers with arguments of the test's own; all are stopped afterwards."""
    running: list[Server] = []

    def start(*arguments: object, **options: Any) -> Server:
        running.append(Server(*arguments, **options))
        return running[-1]

    yield start
    for server in running:
        server.stop()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """An empty folder of models."""
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


@pytest.fixture
def start(repository: Path) -> Iterator[Start]:
    """Make registries of that folder, with settings of the test's own; all are closed afterwards."""
    pool = InferencePool(1)
    started: list[ModelRegistry] = []

    def start(**settings: Any) -> ModelRegistry:
        chosen = load_settings(**{"model_repository": repository, "threads": 1, "max_batch": 4, **settings})
        started.append(ModelRegistry(chosen, pool, lambda *_: None))
        return started[-1]

    yield start
    for registry in started:
        registry.close()
    pool.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium."""
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
