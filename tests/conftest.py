"""Fixtures that several parts share."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def one_torch_thread() -> None:
    """Test processes run side by side; two OpenMP pools on the same cores would spend their time waiting."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real CIFAR packings: ``$CBN_DATA``, or ``../shared/data`` beside the checkout."""
    folder = Path(os.environ.get("CBN_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not (folder / "cifar10-lt.npz").is_file():
        pytest.skip(f"no cifar10-lt.npz in {folder} (set CBN_DATA to the folder that has it)")
    return folder


@pytest.fixture(scope="session")
def checkpoint_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real ``model.pt``: ResNet-20 CBN, a few steps on real digits, both paths used."""
    torch = pytest.importorskip("torch")
    from tests.checkpoints import make_checkpoint

    path = tmp_path_factory.mktemp("checkpoint") / "model.pt"
    with torch.random.fork_rng():
        make_checkpoint(path)
    return path
