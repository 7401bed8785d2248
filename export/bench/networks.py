"""The networks that are benchmarked, their right answers, and the layer's formulas that eager PyTorch can run."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cbn_deploy.checkpoint import Checkpoint, load_model
from cbn_deploy.errors import CheckpointError
from cbn_deploy.kernels import portable
from cbn_deploy.models import bn_twin, create_model
from cbn_deploy.norm import FrozenCompoundBatchNorm2d, freeze
from cbn_deploy.norm.functional import compound_batch_norm_naive
from cbn_deploy.norm.replace import replace_modules
from cbn_deploy.runtime.description import ModelDescription
from cbn_deploy.runtime.preprocessing import normalize
from export.limits import LIMITS

__all__ = [
    "Network",
    "NetworkLabel",
    "bench_images",
    "cbn_network",
    "efficient_in_torch",
    "paper_formula",
    "twin_network",
]

NetworkLabel = Literal["cbn", "bn"]

_MAX_IMAGES = 64
_CHUNK = 32
_SEED = 0


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network and its right answers.

    Attributes:
        label: "cbn", or "bn" for the batch-norm twin.
        module: in eval mode, mixture layers frozen.
        description: as an exported file would carry it.
        expected: (n, K) float64 logits of the benchmark's images, by the unfrozen network in float64.
        limits: (n,) how far a runtime may be off: the exporter's limits for real images (``export.limits``).
    """

    label: NetworkLabel
    module: nn.Module
    description: ModelDescription
    expected: NDArray[np.float64]
    limits: NDArray[np.float64]


def bench_images(checkpoint: Checkpoint) -> tuple[NDArray[np.float32], str]:
    """Up to 64 of the checkpoint's sample images, preprocessed (n, 3, H, W), and a phrase that says what they are."""
    preprocessing = checkpoint.description.preprocessing
    samples = checkpoint.sample_images
    if samples is None or len(samples) == 0:
        shape = (_MAX_IMAGES, preprocessing.height, preprocessing.width, 3)
        pixels = np.random.default_rng(_SEED).integers(0, 256, shape, dtype=np.uint8)
        return normalize(
            pixels, preprocessing
        ), f"{len(pixels)} images of random pixels (the checkpoint has no samples)"
    count = min(len(samples), _MAX_IMAGES)
    pixels = samples.numpy()[np.linspace(0, len(samples) - 1, count).round().astype(int)]
    return normalize(pixels, preprocessing), f"{count} sample images of the checkpoint"


def cbn_network(checkpoint: Checkpoint, images: NDArray[np.float32]) -> Network:
    """The checkpoint's own network.

    Raises:
        CheckpointError: it is a plain batch-norm model, or its tensors do not fit.
    """
    if checkpoint.architecture.norm is None:
        raise CheckpointError(
            f"The checkpoint is a plain batch-norm model ({checkpoint.architecture.name}); give a CBN checkpoint, "
            "its batch-norm twin is measured beside it."
        )
    model = load_model(checkpoint)
    frozen = freeze(model)
    expected, limits = _answers(model, images)
    return Network(label="cbn", module=frozen, description=checkpoint.description, expected=expected, limits=limits)


def twin_network(checkpoint: Checkpoint, images: NDArray[np.float32]) -> Network:
    """The same architecture with plain batch norm and random weights: its time does not depend on them.

    Its running statistics are those of ``images``, its affine parameters are spread around 1 and 0, so that nothing
    can be optimised away and no activation vanishes.
    """
    architecture = bn_twin(checkpoint.architecture)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        model = create_model(architecture)
        for layer in _batch_norms(model):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, 0.0, 0.2)
            layer.momentum = None  # the running statistics become those of the one batch below
    with torch.no_grad():
        model.train()(torch.from_numpy(images))
    twin = freeze(model)
    expected, limits = _answers(model.eval(), images)
    description = dataclasses.replace(checkpoint.description, architecture=architecture.name, components=0)
    return Network(label="bn", module=twin, description=description, expected=expected, limits=limits)


def paper_formula(frozen: nn.Module) -> nn.Module:
    """A copy whose mixture layers compute Eq. (7), (8) and (16) as printed, (B, M, D, H, W) tensor and all."""
    return _with_layers(frozen, compound_batch_norm_naive)


def efficient_in_torch(frozen: nn.Module) -> nn.Module:
    """A copy whose mixture layers are plain torch operations: a compiler cannot see into the custom op."""
    return _with_layers(frozen, lambda *arguments: portable.compound_batch_norm(*arguments)[0])


class _FormulaLayer(nn.Module):
    """A frozen mixture layer that computes a given formula on its tables."""

    def __init__(self, tables: FrozenCompoundBatchNorm2d, formula: Callable[..., Tensor]) -> None:
        super().__init__()
        self.tables = tables
        self.formula = formula

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, *spatial) -> the same shape."""
        t = self.tables
        return self.formula(x, t.tau, t.mean, t.var, t.scale, t.bias, t.epsilon, t.density_scale)


def _with_layers(frozen: nn.Module, formula: Callable[..., Tensor]) -> nn.Module:
    def replacement(_: str, layer: nn.Module) -> nn.Module | None:
        return _FormulaLayer(layer, formula).eval() if isinstance(layer, FrozenCompoundBatchNorm2d) else None

    return replace_modules(copy.deepcopy(frozen), replacement)


def _batch_norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


def _answers(model: nn.Module, images: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Logits in float64, and each image's limit: what float32 itself costs eager PyTorch may widen it."""
    single = _logits(model, images)
    exact = _logits(copy.deepcopy(model).double(), images.astype(np.float64))
    size = np.maximum(1.0, np.abs(exact).max(axis=1))
    rounding = float((np.abs(single - exact).max(axis=1) / size).max())
    return exact, size * max(LIMITS["logits"].value, LIMITS["rounding"].value * rounding)


def _logits(model: nn.Module, images: NDArray[np.floating]) -> NDArray[np.float64]:
    with torch.inference_mode():
        chunks = [model(chunk) for chunk in torch.split(torch.from_numpy(images), _CHUNK)]
    logits: NDArray[np.float64] = torch.cat(chunks).double().numpy()
    return logits
