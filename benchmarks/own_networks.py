"""Networks of other libraries, converted to CBN and exported through the parity gate: which come through.

    pip install torchvision timm
    python benchmarks/own_networks.py --json benchmarks/results/own_networks.json
    python benchmarks/own_networks.py resnet18 timm:regnety_002      # some alone; timm's have the prefix

Random weights, statistics of real handwritten digits at 64 x 64 pixels, four Gaussians a layer: the question is whether
every layer is found, converted, exported and computed right, not how well the network classifies.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn

from cbn_deploy.errors import CbnError
from cbn_deploy.machine import describe_machine
from cbn_deploy.norm import DualPathBatchNorm2d, NormConfig, class_groups, convert_batchnorm
from cbn_deploy.runtime.description import ModelDescription, Preprocessing
from cbn_deploy.runtime.preprocessing import normalize
from export import ExportOptions, ExportResult, ParityReport, export_network

NETWORKS = (
    "resnet18",
    "wide_resnet50_2",
    "densenet121",
    "googlenet",
    "mnasnet0_5",
    "mobilenet_v3_small",
    "shufflenet_v2_x0_5",
    "efficientnet_b0",
    "regnet_y_400mf",
    "timm:resnet18",
    "timm:densenet121",
    "timm:efficientnet_b0",
    "timm:ghostnet_100",
    "timm:hrnet_w18_small",
    "timm:mobilenetv3_small_100",
    "timm:regnety_002",
    "timm:repvgg_a0",
)
SIZE, CLASSES = 64, 10
PREPROCESSING = Preprocessing(height=SIZE, width=SIZE, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


@dataclass(frozen=True)
class Outcome:
    """What became of one network; fractions are of the gate's limits."""

    network: str
    layers: int
    fused: int
    worst_node: float | None
    worst_logit: float | None
    seconds: float
    error: str = ""


def main() -> None:
    """Print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    print("| network | layers | with ReLU or sum | worst node / limit | worst logit / limit | seconds |")
    print("|---|---|---|---|---|---|")
    outcomes = []
    for name in arguments.networks:
        outcomes.append(outcome := export_one(name))
        print(row(outcome), flush=True)
    if arguments.json:
        found = {
            "machine": describe_machine(["torch", "onnxruntime", "torchvision", "timm"]),
            "networks": [dataclasses.asdict(outcome) for outcome in outcomes],
        }
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


def row(outcome: Outcome) -> str:
    """A line of the table."""
    if outcome.error:
        return f"| {outcome.network} | {outcome.layers} | {outcome.error} | | | {outcome.seconds:.0f} |"
    return (
        f"| {outcome.network} | {outcome.layers} | {outcome.fused} | {outcome.worst_node:.2f} "
        f"| {outcome.worst_logit:.2f} | {outcome.seconds:.0f} |"
    )


def export_one(name: str) -> Outcome:
    """Make, convert, show it real images, export."""
    begin = time.monotonic()
    torch.manual_seed(0)
    model = convert_batchnorm(create(name), NormConfig(components=4), class_groups(CLASSES, 4))
    layers = sum(isinstance(module, DualPathBatchNorm2d) for module in model.modules())
    left = [place for place, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    if left:
        raise RuntimeError(f"{name}: {left[0]} is a batch norm still")
    pixels = digits(96)
    with torch.no_grad():
        for images in torch.from_numpy(normalize(pixels, PREPROCESSING)).split(32):
            model.train()(images)
    try:
        result = export(name, model, pixels)
    except CbnError as error:
        return Outcome(name, layers, 0, None, None, time.monotonic() - begin, str(error))
    if not isinstance(result.parity, ParityReport):
        raise TypeError("a float32 file has a parity report")
    plain = result.forms.get("CompoundBatchNormalization", 0)
    return Outcome(
        name,
        layers,
        sum(result.forms.values()) - plain,
        max(op.of_limit for op in result.parity.ops),
        max(logit.of_limit for logit in result.parity.logits),
        time.monotonic() - begin,
    )


def create(name: str) -> nn.Module:
    """A network of torchvision, or with the prefix "timm:" of timm, with fresh weights."""
    if name.startswith("timm:"):
        import timm

        model: nn.Module = timm.create_model(name.removeprefix("timm:"), num_classes=CLASSES)
        return model
    import torchvision

    # GoogLeNet's auxiliary classifiers are for training alone, and its own initialisation takes a minute.
    more = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    found: nn.Module = getattr(torchvision.models, name)(num_classes=CLASSES, **more)
    return found


def digits(count: int) -> NDArray[np.uint8]:
    """Real digits, uint8 (count, SIZE, SIZE, 3)."""
    grey = (load_digits().images[:count] * (255 / 16)).astype(np.uint8)
    return np.stack([np.asarray(Image.fromarray(image).resize((SIZE, SIZE)).convert("RGB")) for image in grey])


def export(name: str, model: nn.Module, pixels: NDArray[np.uint8]) -> ExportResult:
    """Into a folder that is thrown away."""
    description = ModelDescription(
        class_names=tuple("0123456789"),
        class_counts=(10,) * CLASSES,
        preprocessing=PREPROCESSING,
        architecture=name,
        components=4,
        training_prior=(1 / CLASSES,) * CLASSES,
    )
    with tempfile.TemporaryDirectory() as folder:
        return export_network(model, description, Path(folder) / "model.onnx", ExportOptions(), images=pixels)


if __name__ == "__main__":
    main()
