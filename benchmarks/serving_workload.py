"""What the serving benchmarks send: a real exported model, real image files, and the right answers to them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from load_client import Call, http_request
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images
from torch.nn import functional as F

from cbn_deploy.checkpoint import Checkpoint, save_checkpoint
from cbn_deploy.models import ArchitectureConfig, create_model
from cbn_deploy.norm import NormConfig
from cbn_deploy.runtime.description import ModelDescription, Preprocessing
from cbn_deploy.runtime.factory import open_session
from cbn_deploy.runtime.preprocessing import decode_image, preprocess
from export import ExportOptions, export_checkpoint

__all__ = ["IMAGES", "ImageFile", "digits", "export_model", "form", "photographs", "with_logits"]

IMAGES = 48
_TRAINED, _EPOCHS = 768, 3
_COUNTS = (130, 110, 90, 70, 50, 40, 30, 20, 15, 10)
_BOUNDARY = "benchmark-boundary"


@dataclass(frozen=True)
class ImageFile:
    """An image file, its media type, and the logits (K,) that the model gives to it alone."""

    content: bytes
    media_type: str
    logits: NDArray[np.float32]


def export_model(folder: Path, name: str = "resnet32") -> Path:
    """A CIFAR network with Gaussian mixtures, trained until it tells digits apart, and exported as a user would."""
    torch.manual_seed(0)
    architecture = ArchitectureConfig(name=name, num_classes=10, norm=NormConfig(components=4, momentum=0.5))
    model = create_model(architecture)
    pixels, labels = _digit_pixels(_TRAINED)
    images = torch.from_numpy(((pixels / 255.0 - 0.5) / 0.25).astype(np.float32)).permute(0, 3, 1, 2).contiguous()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(_EPOCHS):
        for x, y in zip(images.split(32), torch.from_numpy(labels).split(32), strict=True):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    description = ModelDescription(
        class_names=tuple(f"digit {digit}" for digit in range(10)),
        class_counts=_COUNTS,
        preprocessing=Preprocessing(height=32, width=32, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)),
        architecture=name,
        components=4,
        training_prior=tuple(count / sum(_COUNTS) for count in _COUNTS),
        tool_versions={"torch": torch.__version__},
    )
    checkpoint = Checkpoint(
        architecture=architecture,
        description=description,
        state_dict=model.state_dict(),
        sample_images=torch.from_numpy(pixels[:64]),
    )
    save_checkpoint(folder / "model.pt", checkpoint)
    return export_checkpoint(folder / "model.pt", folder / "model.onnx", ExportOptions(inputs=64)).path


def digits() -> list[tuple[bytes, str]]:
    """Handwritten digits of 32 x 32 pixels as PNG files: next to nothing to decode."""
    return [(_encode(pixels, "PNG"), "image/png") for pixels in _digit_pixels(IMAGES)[0]]


def photographs(width: int = 320, height: int = 240) -> list[tuple[bytes, str]]:
    """Parts of two photographs as JPEG files of some 20 kB, as a camera's picture is made small for the web."""
    photos = load_sample_images().images
    rng = np.random.default_rng(0)
    files = []
    for index in range(IMAGES):
        photo = photos[index % len(photos)]
        top, left = rng.integers(photo.shape[0] - height), rng.integers(photo.shape[1] - width)
        files.append((_encode(photo[top : top + height, left : left + width], "JPEG", quality=90), "image/jpeg"))
    return files


def with_logits(files: Sequence[tuple[bytes, str]], model: Path) -> list[ImageFile]:
    """The files with the right answers, each computed alone."""
    session = open_session(model, threads=1)
    preprocessing = session.description.preprocessing
    return [
        ImageFile(content, kind, session.run(preprocess(decode_image(content), preprocessing)[None]).logits[0])
        for content, kind in files
    ]


def form(path: str, image: ImageFile, expected: bytes) -> Call:
    """The usual upload: a form with one file called ``image``."""
    head = (
        f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="image"\r\n'
        f"Content-Type: {image.media_type}\r\n\r\n"
    )
    body = head.encode() + image.content + f"\r\n--{_BOUNDARY}--\r\n".encode()
    return Call(http_request(path, body, f"multipart/form-data; boundary={_BOUNDARY}"), expected)


def _digit_pixels(count: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """uint8 (n, 32, 32, 3), and labels."""
    data = load_digits()
    grey = np.kron(data.images[:count] * (255.0 / 16.0), np.ones((1, 4, 4))).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1), data.target[:count].astype(np.int64)


def _encode(pixels: NDArray[np.uint8], kind: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()
