"""The server of the soak tests, and requests whose right answers are known to the last digit that float32 gives."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson
from load_client import Call, http_request
from numpy.typing import NDArray
from server_process import ServerProcess, free_port
from serving_workload import ImageFile, digits, export_model, form, with_logits

from cbn_deploy.runtime.factory import open_session
from cbn_deploy.runtime.preprocessing import decode_image, preprocess

__all__ = ["Question", "Soak", "prepare", "raw", "start"]

_ROOT = Path(__file__).parents[1]
# Batches change the order of sums; a wrong answer is that of another image, which differs by whole units.
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Question:
    """A request and the logits (K,) that its answer must have, or as v1 gives them, the energy."""

    call: Call
    logits: NDArray[np.float32]
    protocol: str

    def is_answered_by(self, body: bytes) -> bool:
        """Whether the body of a response with status 200 is right."""
        content = orjson.loads(body)
        if self.protocol == "v2":
            (output,) = content["outputs"]
            return bool(np.abs(np.asarray(output["data"]) - self.logits).max() < _TOLERANCE)
        (result,) = content["results"]
        energy = -float(np.logaddexp.reduce(self.logits.astype(np.float64)))
        best = result["predictions"][0]["index"]
        return abs(result["energy"] - energy) < _TOLERANCE and best == int(self.logits.argmax())


@dataclass(frozen=True)
class Soak:
    """What the parts share: a folder, the model's file in it, and questions in v1 (form and raw) and v2 alike."""

    folder: Path
    model: Path
    questions: list[Question]


def prepare(folder: Path, model: Path | None) -> Soak:
    """Copy or make the model, and ask it for the right answers."""
    served = folder / "soak.onnx"
    shutil.copyfile(model or export_model(folder, "resnet20"), served)
    images = with_logits(digits(), served)
    session = open_session(served, threads=1)
    questions = []
    for image in images:
        pixels = preprocess(decode_image(image.content), session.description.preprocessing)
        questions += [
            Question(form("/v1/classify", image, b""), image.logits, "v1"),
            Question(raw(image), image.logits, "v1"),
            Question(_tensors(pixels), image.logits, "v2"),
        ]
    session.close()
    return Soak(folder, served, questions)


def raw(image: ImageFile) -> Call:
    """The file as the body."""
    return Call(http_request("/v1/classify?top_k=3", image.content, image.media_type), b"")


def start(soak: Soak, *options: str, port: int | None = None) -> ServerProcess:
    """A cbn-serve of the soak's model on ``port``, by default a free one."""
    port = port or free_port()
    command = [sys.executable, "-c", "from serving.cli import main; main()", str(soak.model), "--port", str(port)]
    return ServerProcess([*command, *options], port, soak.folder / "server.log", "/v2/health/ready", folder=_ROOT)


def _tensors(pixels: NDArray[np.float32]) -> Call:
    """The tensor in binary, as tritonclient sends it."""
    data = pixels[None].tobytes()
    tensor = {
        "name": "images",
        "datatype": "FP32",
        "shape": [1, *pixels.shape],
        "parameters": {"binary_data_size": len(data)},
    }
    head = orjson.dumps({"inputs": [tensor]})
    content = http_request("/v2/models/soak/infer", head + data, "application/octet-stream")
    line = f"\r\nInference-Header-Content-Length: {len(head)}\r\nContent-Length:".encode()
    return Call(content.replace(b"\r\nContent-Length:", line, 1), b"")
