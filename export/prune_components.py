"""Leave out mixture components that are dead, and prove on real images that nobody misses them.

A pass on the torch model, before freezing: so everything that follows, the parity gate above all, works on the pruned
network as it would on any other.

A small prior alone does not make a component dead: of the components that training holds at the floor, some still claim
the few pixels that lie far from all others. Dead is a component whose prior is at or below the threshold and to
which no pixel of a real image gives a noticeable posterior. What their absence
changes is then judged on the logits.

- Requires: mixture layers in eval mode; at least one real image.
- Ensures: no dead component is left in a layer; every layer keeps its heaviest component; the priors that stay are
  rescaled to sum to 1; a pruned layer is a compound layer (its split path is gone).
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cbn_deploy.errors import DataError, ParityError
from cbn_deploy.norm import CompoundBatchNorm2d, DualPathBatchNorm2d, MixtureBatchNorm
from cbn_deploy.norm.replace import replace_modules
from cbn_deploy.norm.statistics import TAU_FLOOR, MixtureStatistics
from export.inputs import EXTREMES, ParityInputs
from export.limits import LIMITS

__all__ = ["DEFAULT_THRESHOLD", "LayerPruning", "PruningReport", "prune_components"]

# Training holds priors at the floor and rescales them in float32; a percent covers both.
DEFAULT_THRESHOLD = 1.01 * TAU_FLOOR
_BATCH = 8

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class LayerPruning:
    """A layer's components: how many there were, how many stay, and how many of those stay only because real images
    claim them although their prior is small."""

    layer: str
    components: int
    kept: int
    claimed: int


@dataclass(frozen=True, kw_only=True)
class PruningReport:
    """What was pruned and what it changed.

    Attributes:
        threshold: components with a prior at or below it were left out, if no pixel of a real image claims them.
        layers: every mixture layer.
        real_images: how many the judgement rests on.
        largest_move: of any logit on them, pruned against unpruned in float64, in units of max(1, largest |logit|).
        limit: what ``largest_move`` was held to.
        largest_move_extremes: the same on extreme inputs, for information.
    """

    threshold: float
    layers: tuple[LayerPruning, ...]
    real_images: int
    largest_move: float
    limit: float
    largest_move_extremes: float

    @property
    def dropped(self) -> int:
        """Components left out, over all layers."""
        return sum(layer.components - layer.kept for layer in self.layers)

    @property
    def claimed(self) -> int:
        """Components that stay because real images claim them although their prior is small, over all layers."""
        return sum(layer.claimed for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, numbers to four significant digits; of the layers those that lost a component."""
        plain = {
            name: float(f"{value:.4g}") if isinstance(value, float) else value
            for name, value in dataclasses.asdict(self).items()
        }
        plain |= {"dropped": self.dropped, "claimed": self.claimed}
        plain["layers"] = [dataclasses.asdict(layer) for layer in self.layers if layer.kept < layer.components]
        return plain


def prune_components(model: nn.Module, inputs: ParityInputs, threshold: float) -> tuple[nn.Module, PruningReport]:
    """A copy of ``model`` without its dead components, if its answers to real images stay what they are.

    Args:
        model: in eval mode, float32.
        inputs: the parity gate's: real images decide, extremes are reported.
        threshold: of tau, 0 <= threshold < 1.

    Raises:
        ValueError: an impossible threshold, or a model in training mode.
        DataError: there is no real image among ``inputs``.
        ParityError: a logit moves by more than the limit, or another class comes first.
    """
    if not 0 <= threshold < 1 or model.training:
        raise ValueError(f"expected a model in eval mode and a threshold in [0, 1), got {threshold}")
    if inputs.real_count == 0:
        raise DataError(
            "Pruning is judged on real images and the checkpoint carries none; add --data FOLDER with some of them."
        )
    pruned, layers = _without_dead(model, _largest_claims(model, inputs), threshold)
    return pruned, _judge(model, pruned, layers, inputs, threshold)


def _largest_claims(model: nn.Module, inputs: ParityInputs) -> dict[str, torch.Tensor]:
    """Layer -> (M,) the largest posterior that any pixel of a real image gives each component."""
    claims: dict[str, torch.Tensor] = {}

    def record(name: str, layer: MixtureBatchNorm, x: torch.Tensor) -> None:
        found = layer.posterior(x).transpose(0, 1).flatten(1).amax(1)
        claims[name] = torch.maximum(claims[name], found) if name in claims else found

    hooks = [
        layer.register_forward_pre_hook(lambda layer, arguments, name=name: record(name, layer, arguments[0]))
        for name, layer in model.named_modules()
        if isinstance(layer, CompoundBatchNorm2d | DualPathBatchNorm2d)
    ]
    try:
        for start in range(0, inputs.real_count, _BATCH):
            with torch.inference_mode():
                model(torch.from_numpy(inputs.batch(range(start, min(start + _BATCH, inputs.real_count)))))
    finally:
        for hook in hooks:
            hook.remove()
    return claims


def _without_dead(
    model: nn.Module, claims: Mapping[str, torch.Tensor], threshold: float
) -> tuple[nn.Module, tuple[LayerPruning, ...]]:
    layers: list[LayerPruning] = []

    def smaller(name: str, layer: nn.Module) -> nn.Module | None:
        if not isinstance(layer, CompoundBatchNorm2d | DualPathBatchNorm2d):
            return None
        tau = layer.running_tau / layer.running_tau.sum()
        light = tau <= threshold
        light[tau.argmax()] = False
        # A layer that no image reaches claims nothing and decides nothing.
        claimed = light & (claims.get(name, torch.zeros_like(tau)) > LIMITS["claim"].value)
        keep = ~light | claimed
        layers.append(LayerPruning(layer=name, components=len(tau), kept=int(keep.sum()), claimed=int(claimed.sum())))
        return None if bool(keep.all()) else _without(layer, keep)

    return replace_modules(copy.deepcopy(model), smaller), tuple(layers)


@torch.no_grad()
def _without(layer: CompoundBatchNorm2d | DualPathBatchNorm2d, keep: torch.Tensor) -> CompoundBatchNorm2d:
    config = dataclasses.replace(layer.config, components=int(keep.sum()), initialization="identical")
    smaller = CompoundBatchNorm2d(layer.num_features, config)
    smaller.density_scale = layer.density_scale
    tau, mean, var = (table[keep] for table in layer.running)
    smaller.running_tau, smaller.running_mean, smaller.running_var = MixtureStatistics(tau / tau.sum(), mean, var)
    scale, bias = layer.inference_affine()
    smaller.weight.copy_(scale[keep])
    smaller.bias.copy_(bias[keep])
    return smaller.eval()


def _judge(
    model: nn.Module, pruned: nn.Module, layers: tuple[LayerPruning, ...], inputs: ParityInputs, threshold: float
) -> PruningReport:
    """Compare the pruned network with the unpruned one, both in float64: refuse or report."""
    exact, exact_pruned = copy.deepcopy(model).double(), copy.deepcopy(pruned).double()
    real = range(inputs.real_count)
    extremes = range(inputs.real_count, inputs.real_count + len(EXTREMES))
    moves, changed = _moves(exact, exact_pruned, inputs, real)
    report = PruningReport(
        threshold=threshold,
        layers=layers,
        real_images=inputs.real_count,
        largest_move=moves,
        limit=LIMITS["pruning"].value,
        largest_move_extremes=_moves(exact, exact_pruned, inputs, extremes)[0],
    )
    if changed or not report.largest_move <= report.limit:
        raise ParityError(
            f"Without the {report.dropped} components whose prior is at most {threshold:.3g} the logits of real "
            f"images move by up to {report.largest_move:.2g} of their size where {report.limit:g} is allowed, and "
            f"{changed} of {report.real_images} images change their class, so nothing was written; export without "
            "--prune-components or lower --prune-threshold."
        )
    return report


def _moves(model: nn.Module, pruned: nn.Module, inputs: ParityInputs, indices: range) -> tuple[float, int]:
    """Largest move of a logit in units of max(1, largest |logit|), and how many inputs change their top-1."""
    largest, changed = 0.0, 0
    for start in range(indices.start, indices.stop, _BATCH):
        chosen = range(start, min(start + _BATCH, indices.stop))
        images = torch.from_numpy(inputs.batch(chosen)).double()
        with torch.inference_mode():
            before, after = model(images).numpy(), pruned(images).numpy()
        size = np.maximum(1.0, np.abs(before).max(1))
        move = np.abs(after - before).max(1) / size
        largest = max(largest, float(np.nan_to_num(move, nan=np.inf).max()))
        changed += int((before.argmax(1) != after.argmax(1)).sum())
    return largest, changed
