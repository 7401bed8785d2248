"""One real export, made once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
import torch

from export import ExportOptions, ExportResult, export_checkpoint

# The fewest inputs with every extreme twice; one export in full is enough.
FEW = 32


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """torch and onnxruntime taking turns on two cores spend their time waiting for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def exported(checkpoint_path: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportResult:
    """A ResNet-20 CBN checkpoint exported with the full parity gate."""
    return export_checkpoint(checkpoint_path, tmp_path_factory.mktemp("exported") / "model.onnx")


@pytest.fixture(scope="session")
def exported_proto(exported: ExportResult) -> onnx.ModelProto:
    return onnx.load(exported.path)


@pytest.fixture(scope="session")
def flat(checkpoint_path: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportResult:
    """The same checkpoint, inlined and with posteriors."""
    output = tmp_path_factory.mktemp("flat") / "flat.onnx"
    return export_checkpoint(checkpoint_path, output, ExportOptions(inline=True, with_posterior=True, inputs=FEW))
