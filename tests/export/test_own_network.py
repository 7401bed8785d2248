"""A network that is none of ours, with an architecture of another family, through the gate into a served file."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cbn_deploy.norm import NormConfig, class_groups, convert_batchnorm, split_path
from cbn_deploy.runtime.description import ModelDescription
from cbn_deploy.runtime.factory import open_session
from export import ExportOptions, ExportResult, export_network
from export.op import DOMAIN
from tests.checkpoints import CLASS_COUNTS, CLASS_NAMES, PREPROCESSING, digit_pixels
from tests.export.conftest import FEW

DESCRIPTION = ModelDescription(
    class_names=CLASS_NAMES,
    class_counts=CLASS_COUNTS,
    preprocessing=PREPROCESSING,
    architecture="inverted residuals",
    components=3,
    training_prior=(0.1,) * 10,
)
OPTIONS = ExportOptions(inputs=FEW)


class InvertedResidual(nn.Module):
    """1x1, depthwise 3x3 and 1x1, SiLU, squeeze-and-excitation: MobileNetV3's and EfficientNet's block."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inside = 3 * channels
        self.expand = nn.Sequential(nn.Conv2d(channels, inside, 1, bias=False), nn.BatchNorm2d(inside), nn.SiLU())
        depthwise = nn.Conv2d(inside, inside, 3, padding=1, groups=inside, bias=False)
        self.depthwise = nn.Sequential(depthwise, nn.BatchNorm2d(inside), nn.SiLU())
        self.squeeze, self.excite = nn.Conv2d(inside, 4, 1), nn.Conv2d(4, inside, 1)
        self.project = nn.Sequential(nn.Conv2d(inside, channels, 1, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(self.expand(x))
        gate = self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(y, 1))))
        return x + self.project(y * torch.sigmoid(gate))


def network() -> nn.Sequential:
    stem = nn.Sequential(nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16), nn.Hardswish())
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(16, 10))
    return nn.Sequential(stem, InvertedResidual(16), nn.MaxPool2d(2), InvertedResidual(16), *head)


def normalized(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(((pixels / 255.0 - 0.5) / 0.25).astype(np.float32)).permute(0, 3, 1, 2).contiguous()


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    """Converted, and some steps on both paths; in training mode, as a training loop leaves it."""
    torch.manual_seed(0)
    model = convert_batchnorm(network(), NormConfig(components=3), class_groups(10, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    pixels, labels = digit_pixels(32 * 12)
    for x, y in zip(normalized(pixels).split(32), torch.from_numpy(labels).split(32), strict=True):
        loss = F.cross_entropy(model(x), y)
        with split_path(model, y):
            loss = loss + F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


@pytest.fixture(scope="module")
def exported(trained: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> ExportResult:
    images = digit_pixels(64)[0]
    return export_network(trained, DESCRIPTION, tmp_path_factory.mktemp("own") / "own.onnx", OPTIONS, images=images)


def test_every_layer_and_the_logits_are_judged(exported: ExportResult) -> None:
    assert not exported.parity.rounding_allowed
    assert exported.parity.real_images > 0
    assert sorted(op.layer for op in exported.parity.ops) == sorted(
        ["0.1", *(f"{block}.{part}.1" for block in (1, 3) for part in ("expand", "depthwise", "project"))]
    )
    assert exported.forms == {"CompoundBatchNormalization": 7}


def test_the_file_answers_as_the_network(exported: ExportResult, trained: nn.Module) -> None:
    pixels = digit_pixels(200)[0][100:]
    session = open_session(exported.path)
    assert (session.description.architecture, session.description.class_names) == ("inverted residuals", CLASS_NAMES)
    assert set(session.description.occupancy) == {op.layer for op in exported.parity.ops}
    images = normalized(pixels)
    trained.eval()
    with torch.inference_mode():
        expected = trained(images).numpy()
    trained.train()
    found = session.run(images.numpy()).logits
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max(), rtol=0)


def test_the_network_is_left_as_it_is(trained: nn.Module, tmp_path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    export_network(trained, DESCRIPTION, tmp_path / "own.onnx", OPTIONS)
    assert trained.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in trained.state_dict().items())


def test_a_network_without_the_layer(tmp_path: Path) -> None:
    """Nothing of ours in the file, the same gate and description: a batch-norm baseline can be served beside it."""
    torch.manual_seed(0)
    plain = dataclasses.replace(DESCRIPTION, components=0)
    result = export_network(network(), plain, tmp_path / "plain.onnx", OPTIONS, images=digit_pixels(64)[0])
    assert not [node for node in onnx.load(result.path).graph.node if node.domain == DOMAIN]
    assert not result.parity.rounding_allowed


def test_what_does_not_fit_is_refused(trained: nn.Module, tmp_path: Path) -> None:
    output = tmp_path / "own.onnx"
    three = dataclasses.replace(
        DESCRIPTION, class_names=("a", "b", "c"), class_counts=(3, 2, 1), training_prior=(0.5, 0.3, 0.2)
    )
    with pytest.raises(ValueError, match=r"logits \(2, 3\) for two images of 3 classes, got \(2, 10\)"):
        export_network(trained, three, output)
    with pytest.raises(ValueError, match=r"images must be uint8 \(n, 32, 32, 3\), got float64 \(4, 32, 32, 3\)"):
        export_network(trained, DESCRIPTION, output, images=digit_pixels(4)[0] / 255.0)
    with pytest.raises(ValueError, match=r"got uint8 \(4, 16, 32, 3\)"):
        export_network(trained, DESCRIPTION, output, images=digit_pixels(4)[0][:, ::2])
    two_heads = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 20), nn.Unflatten(1, (2, 10)))
    with pytest.raises(ValueError, match=r"got \(2, 2, 10\)"):
        export_network(two_heads, DESCRIPTION, output)
    assert not output.exists()
