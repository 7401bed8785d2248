"""Checkpoints for tests: real layers and real digits, a few training steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch.nn import functional as F

from cbn_deploy.checkpoint import Checkpoint, save_checkpoint
from cbn_deploy.models import ArchitectureConfig, create_model
from cbn_deploy.norm import NormConfig, split_path
from cbn_deploy.runtime.description import ModelDescription, Preprocessing

PREPROCESSING = Preprocessing(height=32, width=32, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
CLASS_NAMES = tuple(f"digit {d}" for d in range(10))
CLASS_COUNTS = (130, 110, 90, 70, 50, 40, 30, 20, 15, 10)


def digit_pixels(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Real digits as uint8 (n, 32, 32, 3), and their labels."""
    digits = load_digits()
    grey = np.kron(digits.images[:count] * (255.0 / 16.0), np.ones((1, 4, 4))).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1), digits.target[:count].astype(np.int64)


def make_checkpoint(path: Path, name: str = "resnet20", norm: NormConfig | None = None, steps: int = 6) -> None:
    """Train ``steps`` short steps on both paths and save; seconds, not accuracy, is the point."""
    torch.manual_seed(0)
    norm = None if name.endswith("-bn") else (norm or NormConfig())
    architecture = ArchitectureConfig(name=name, num_classes=10, norm=norm)
    model = create_model(architecture)
    pixels, labels = digit_pixels(32 * steps)
    images = torch.from_numpy(((pixels / 255.0 - 0.5) / 0.25).astype(np.float32)).permute(0, 3, 1, 2).contiguous()
    targets = torch.from_numpy(labels)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for x, y in zip(images.split(32), targets.split(32), strict=True):
        loss = F.cross_entropy(model(x), y)
        if norm is not None:
            with split_path(model, y):
                loss = loss + F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    total = sum(CLASS_COUNTS)
    description = ModelDescription(
        class_names=CLASS_NAMES,
        class_counts=CLASS_COUNTS,
        preprocessing=PREPROCESSING,
        architecture=name,
        components=norm.components if norm else 0,
        training_prior=tuple(count / total for count in CLASS_COUNTS),
        tool_versions={"torch": torch.__version__},
    )
    checkpoint = Checkpoint(
        architecture=architecture,
        description=description,
        state_dict=model.state_dict(),
        sample_images=torch.from_numpy(pixels[:64]),
    )
    save_checkpoint(path, checkpoint)
