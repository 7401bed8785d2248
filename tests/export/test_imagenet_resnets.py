"""The whole way of ResNet-50 and ResNet-18: a batch-norm network made CBN, saved, exported through the gate."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from cbn_deploy.checkpoint import Checkpoint, load_checkpoint, load_model, save_checkpoint
from cbn_deploy.models import ArchitectureConfig, bn_twin, create_model
from cbn_deploy.norm import NormConfig, class_groups, convert_batchnorm
from cbn_deploy.runtime.description import ModelDescription
from export import ExportOptions, ExportResult, export_checkpoint
from export.bench.networks import bench_images, cbn_network, twin_network
from export.op import ADD_RELU, DOMAIN, PLAIN, RELU
from tests.checkpoints import CLASS_COUNTS, CLASS_NAMES, PREPROCESSING, digit_pixels
from tests.export.conftest import FEW

SIZE = 32


def save_network(name: str, path: Path) -> Path:
    """Statistics of real images, four Gaussians in each layer that compete for every pixel."""
    torch.manual_seed(0)
    norm = NormConfig(components=4)
    architecture = ArchitectureConfig(name=name, num_classes=10, norm=norm)
    grey, _ = digit_pixels(32)
    pixels = np.stack([np.asarray(Image.fromarray(image).resize((SIZE, SIZE))) for image in grey])
    images = torch.from_numpy(((pixels / 255.0 - 0.5) / 0.25).astype(np.float32)).permute(0, 3, 1, 2).contiguous()
    source = create_model(bn_twin(architecture))
    with torch.no_grad():
        for place, module in source.named_modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None
            if place.endswith("bn3" if name == "resnet50" else "bn2"):
                # Random branches at full size amplify float32's rounding to the gate's limit, with batch norm too.
                module.weight.fill_(0.2)
        source.train()(images)
    model = convert_batchnorm(source.eval(), norm, class_groups(10, 4))
    description = ModelDescription(
        class_names=CLASS_NAMES,
        class_counts=CLASS_COUNTS,
        preprocessing=dataclasses.replace(PREPROCESSING, height=SIZE, width=SIZE),
        architecture=name,
        components=4,
        training_prior=(0.1,) * 10,
    )
    samples = torch.from_numpy(pixels)
    save_checkpoint(
        path,
        Checkpoint(
            architecture=architecture,
            description=description,
            state_dict=model.state_dict(),
            sample_images=samples,
        ),
    )
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ResNet-50."""
    return save_network("resnet50", tmp_path_factory.mktemp("resnet50") / "model.pt")


@pytest.fixture(scope="module")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportResult:
    output = tmp_path_factory.mktemp("exported") / "model.onnx"
    return export_checkpoint(checkpoint, output, ExportOptions(inputs=FEW))


def test_every_activation_and_residual_is_fused(exported: ExportResult) -> None:
    graph = onnx.load(exported.path).graph
    types = Counter(node.op_type for node in graph.node)
    # 16 blocks: two activations inside and the sum at the end; the stem; four projection shortcuts.
    assert (types[RELU.op_type], types[ADD_RELU.op_type], types[PLAIN.op_type]) == (33, 16, 4)
    assert not types["Relu"] + types["Add"]
    plain = [node.name for node in graph.node if node.domain == DOMAIN and node.op_type == PLAIN.op_type]
    # Where two layers meet in a sum, the later one, on the shortcut, takes the other as its residual.
    assert plain == [f"layer{stage}.0.bn3" for stage in (1, 2, 3, 4)]


def test_the_gate_holds_at_2048_channels(exported: ExportResult) -> None:
    assert not exported.parity.rounding_allowed
    assert exported.parity.top1_agreement == 1.0
    assert len(exported.parity.ops) == 53
    assert max(op.of_limit for op in exported.parity.ops) < 0.5


def test_a_network_of_basic_blocks(tmp_path: Path) -> None:
    path = save_network("resnet18", tmp_path / "model.pt")
    exported = export_checkpoint(path, tmp_path / "model.onnx", ExportOptions(inputs=FEW))
    assert not exported.parity.rounding_allowed
    assert exported.parity.top1_agreement == 1.0
    assert len(exported.parity.ops) == 20
    types = Counter(node.op_type for node in onnx.load(exported.path).graph.node)
    # 8 blocks: an activation inside and the sum at the end; the stem; three projection shortcuts.
    assert (types[RELU.op_type], types[ADD_RELU.op_type], types[PLAIN.op_type]) == (9, 8, 3)
    assert not types["Relu"] + types["Add"]


def test_the_benchmark_s_networks(checkpoint: Path) -> None:
    loaded = load_checkpoint(checkpoint)
    images, _ = bench_images(loaded)
    network, twin = cbn_network(loaded, images[:2]), twin_network(loaded, images[:2])
    assert twin.description.architecture == "resnet50-bn"
    for found in (network, twin):
        with torch.inference_mode():
            logits = found.module(torch.from_numpy(images[:2])).numpy()
        assert (np.abs(logits - found.expected) <= found.limits[:, None]).all()
    assert not load_model(loaded).training
