"""A small model that knows the digits, and one export of each precision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from cbn_deploy.checkpoint import Checkpoint, load_checkpoint, load_model, save_checkpoint
from cbn_deploy.data import load_digits_lt
from cbn_deploy.models import ArchitectureConfig, create_model
from cbn_deploy.norm import NormConfig
from cbn_deploy.runtime.description import ModelDescription, Preprocessing
from cbn_deploy.runtime.preprocessing import normalize
from export import ExportOptions, ExportResult, export_checkpoint
from tests.export.conftest import FEW

DIGITS = Path("digits")

# What the exports may lose, in points. Two epochs train another network on every kind of CPU (top-1 0.41 to 0.91 over
# seeds), and on 400 images such a one can lose more than the half point that is allowed by default.
MAX_DROP = 5.0


# A quarter of the pixels, a quarter of the time.
PREPROCESSING = Preprocessing(height=16, width=16, mean=(0.309, 0.309, 0.309), std=(0.349, 0.349, 0.349))


def training_images() -> tuple[torch.Tensor, torch.Tensor]:
    """All digits but the test images of digits-lt, preprocessed, and their labels."""
    digits, test = load_digits(), load_digits_lt().test
    rest = np.setdiff1d(np.arange(len(digits.target)), test.numbers)
    grey = np.kron(digits.images[rest] * (255.0 / 16.0), np.ones((1, 2, 2))).astype(np.uint8)
    pixels = np.repeat(grey[..., None], 3, axis=-1)
    return torch.from_numpy(normalize(pixels, PREPROCESSING)), torch.from_numpy(digits.target[rest])


def make_trained_checkpoint(path: Path, name: str = "resnet20", epochs: float = 2.0) -> None:
    """Two epochs at 16 x 16 pixels take seconds, and most digits are right."""
    data = load_digits_lt()
    norm = None if name.endswith("-bn") else NormConfig(components=3)
    architecture = ArchitectureConfig(name=name, num_classes=10, norm=norm)
    images, labels = training_images()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = create_model(architecture, data.class_counts).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
        order = torch.cat([torch.randperm(len(images)) for _ in range(2)])
        for batch in order[: int(epochs * len(images))].split(32):
            loss = F.cross_entropy(model(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    description = ModelDescription(
        class_names=data.class_names,
        class_counts=data.class_counts,
        preprocessing=PREPROCESSING,
        architecture=name,
        components=norm.components if norm else 0,
        training_prior=(0.1,) * 10,
    )
    save_checkpoint(path, Checkpoint(architecture=architecture, description=description, state_dict=model.state_dict()))


@pytest.fixture(scope="session")
def trained_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trained") / "model.pt"
    make_trained_checkpoint(path)
    return path


@pytest.fixture(scope="session")
def trained_model(trained_path: Path) -> nn.Module:
    return load_model(load_checkpoint(trained_path))


@pytest.fixture(scope="session")
def int8(trained_path: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportResult:
    output = tmp_path_factory.mktemp("int8") / "model.onnx"
    options = ExportOptions(precision="int8", data=DIGITS, inputs=FEW, max_drop=MAX_DROP)
    return export_checkpoint(trained_path, output, options)


@pytest.fixture(scope="session")
def fp16(trained_path: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportResult:
    output = tmp_path_factory.mktemp("fp16") / "model.onnx"
    options = ExportOptions(precision="fp16", data=DIGITS, inputs=FEW, max_drop=MAX_DROP)
    return export_checkpoint(trained_path, output, options)


@pytest.fixture(scope="session")
def int8_proto(int8: ExportResult) -> onnx.ModelProto:
    return onnx.load(int8.path)


@pytest.fixture(scope="session")
def fp16_proto(fp16: ExportResult) -> onnx.ModelProto:
    return onnx.load(fp16.path)
