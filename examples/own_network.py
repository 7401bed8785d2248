"""Your own network and your own training loop: convert, train, export with proof, classify.

    python examples/own_network.py            # half a minute on a CPU; writes digits.onnx
    cbn-serve digits.onnx

The network here is small and written below; one of torchvision or timm takes its place without another change.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from cbn_deploy.norm import NormConfig, convert_batchnorm
from cbn_deploy.runtime.description import ModelDescription, Preprocessing
from cbn_deploy.runtime.factory import open_session
from cbn_deploy.runtime.preprocessing import normalize
from cbn_deploy.training.losses import balanced_softmax
from export import export_network

# What the server does with an image before the network sees it; training has to do the same.
PREPROCESSING = Preprocessing(height=16, width=16, mean=(0.3, 0.3, 0.3), std=(0.35, 0.35, 0.35))
EPOCHS = 30


def main(output: Path) -> None:
    """Train, export to ``output``, classify with the file."""
    torch.manual_seed(0)
    train_pixels, train_labels, test_pixels, test_labels = long_tailed_digits()
    counts = np.bincount(train_labels)

    model = convert_batchnorm(network(len(counts)), NormConfig(components=4))
    images = torch.from_numpy(normalize(train_pixels, PREPROCESSING))
    train(model, images, torch.from_numpy(train_labels), torch.from_numpy(counts / counts.sum()).log().float())

    description = ModelDescription(
        class_names=tuple(f"digit {digit}" for digit in range(10)),
        class_counts=tuple(counts.tolist()),
        preprocessing=PREPROCESSING,
        architecture="small convolutional network",
        components=4,
        training_prior=(0.1,) * 10,  # after balanced softmax; after plain cross-entropy the shares of the classes
    )
    result = export_network(model, description, output, images=test_pixels)
    print(f"{result.path}: {sum(result.forms.values())} mixture layers, parity on {result.parity.inputs} inputs holds")

    logits = open_session(output).run(normalize(test_pixels, PREPROCESSING)).logits
    recall = [(logits[test_labels == digit].argmax(1) == digit).mean() for digit in range(10)]
    print(f"mean recall of the classes {np.mean(recall):.1%}, of the three rarest {np.mean(recall[-3:]):.1%}")


def network(classes: int) -> nn.Sequential:
    """Images (B, 3, 16, 16) -> logits (B, classes), with plain batch norm."""

    def block(before: int, channels: int, stride: int) -> list[nn.Module]:
        convolution = nn.Conv2d(before, channels, 3, stride=stride, padding=1, bias=False)
        return [convolution, nn.BatchNorm2d(channels), nn.SiLU()]

    body = [*block(3, 16, 1), *block(16, 32, 2), *block(32, 32, 1), *block(32, 64, 2), *block(64, 64, 1)]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes))


def train(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, log_prior: torch.Tensor) -> None:
    """Nothing of it is particular to the layer."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3, nesterov=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    model.train()
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(images)).split(32):
            shift = torch.randint(-2, 3, (2,)).tolist()
            loss = balanced_softmax(model(images[batch].roll(shift, (2, 3))), labels[batch], log_prior)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()


def long_tailed_digits() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Training images of 130 zeros down to 6 nines, and 40 other images of every digit to test on."""
    digits = load_digits()
    grey = np.kron(digits.images * (255 / 16), np.ones((1, 2, 2))).astype(np.uint8)
    pixels = np.repeat(grey[..., None], 3, axis=-1)
    order = np.random.default_rng(0)
    places = [order.permutation(np.flatnonzero(digits.target == digit)) for digit in range(10)]
    counts = np.geomspace(130, 6, 10).astype(int)
    chosen = np.concatenate([place[40 : 40 + count] for place, count in zip(places, counts, strict=True)])
    held_out = np.concatenate([place[:40] for place in places])
    return pixels[chosen], digits.target[chosen], pixels[held_out], digits.target[held_out]


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "digits.onnx"))
