"""A server image has no torch: the server must neither need nor load what training and export use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.serving.files import BLUE
from tests.serving.server import Server

BLOCKER = """
import sys


class Absent:
    names = {"torch", "onnx", "onnxscript", "onnx_ir", "sklearn", "scipy", "matplotlib", "torchmetrics", "tensorboard"}

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Absent())
"""


def test_a_real_model_is_served_without_torch(
    colours_path: Path, cbn_path: Path, start_server: Callable[..., Server]
) -> None:
    server = start_server(colours_path, f"digits={cbn_path}", "--threads", 1, prelude=BLOCKER)
    for model in ("colours", "digits"):
        response = server.client.post("/v1/classify", params={"model": model}, files={"image": BLUE})
        assert response.status_code == 200
        assert response.json()["model"] == model
    assert server.client.get("/v1/models").status_code == 200
