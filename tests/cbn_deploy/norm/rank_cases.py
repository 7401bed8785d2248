"""Small networks with mixture layers and what one training step of them gives, on one rank of several or alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cbn_deploy.norm import DualPathBatchNorm2d, NormConfig, split_path, synchronize

LABELS = (0, 0, 0, 1, 1, 2, 2, 3)
SHAPE = (3, 5, 4)  # of an image


@dataclass(frozen=True)
class Case:
    """A network, and how many of the batch's images each rank gets; ``config`` ``None`` is plain batch norm."""

    shares: tuple[int, ...] = (4, 4)
    config: Mapping[str, Any] | None = field(default_factory=dict)
    labels: tuple[int, ...] = LABELS
    offset: float = 0.0


CASES: dict[str, Case] = {
    "halves, the groups of each rank empty on the other": Case(),
    "halves, mixed groups": Case(labels=(3, 0, 1, 2, 0, 1, 0, 2)),
    "uneven": Case(shares=(5, 3)),
    "one image on a rank": Case(shares=(1, 7), labels=(0, 1, 2, 3, 3, 2, 1, 0)),
    "no image on a rank": Case(shares=(8, 0)),
    "no image on the first rank": Case(shares=(0, 8)),
    "far from zero": Case(offset=300.0),
    "algorithm 2": Case(config={"statistics": "algorithm2"}),
    "update then read": Case(config={"statistics": "update_then_read"}, shares=(3, 5)),
    "posterior detached": Case(config={"posterior_gradient": False}),
    "one component": Case(config={"components": 1}, shares=(5, 3)),
    "separate tables": Case(config={"split_affine": "separate"}),
    "a split path of its own": Case(config={"components": 1, "split_groups": 4}, shares=(6, 2)),
    "first batch": Case(config={"initialization": "first_batch"}, shares=(3, 5)),
    "first batch, a rank without": Case(config={"initialization": "first_batch"}, shares=(0, 8)),
    "plain batch norm": Case(config=None, shares=(5, 3)),
    "plain batch norm, a rank without": Case(config=None, shares=(8, 0)),
}


def network(case: Case) -> nn.Module:
    """Two convolutions, each with a norm layer, and a classifier, float64."""
    torch.manual_seed(0)
    config = None if case.config is None else NormConfig(**{"components": 4, **case.config})

    def norm(channels: int) -> nn.Module:
        if config is None:
            return nn.BatchNorm2d(channels)
        groups = torch.arange(4) % config.groups
        return DualPathBatchNorm2d(channels, groups, config)

    layers = (
        nn.Conv2d(3, 4, 3, padding=1, bias=False),
        norm(4),
        nn.Tanh(),
        nn.Conv2d(4, 6, 3, padding=1, bias=False),
        norm(6),
        nn.Flatten(),
        nn.Linear(6 * 20, 4),
    )
    return nn.Sequential(*layers).double().train()


def step(case: Case, rank: int = 0, *, local: bool = False, whole: bool = False) -> dict[str, Tensor]:
    """Two steps of four forwards and one backward, as in training: logits, x's gradients, parameter gradients, buffers.

    Args:
        case: which.
        rank: whose share of the batch.
        local: there are no other ranks to synchronize with.
        whole: the whole batch instead of a share.
    """
    model = network(case)
    if not local:
        synchronize(model)
    generator = torch.Generator().manual_seed(1)
    weak, strong = (torch.randn(8, *SHAPE, generator=generator, dtype=torch.float64) + case.offset for _ in range(2))
    labels = torch.tensor(case.labels)
    ends = list(accumulate(case.shares))
    share = slice(None) if whole else slice(ends[rank] - case.shares[rank], ends[rank])
    found: dict[str, Tensor] = {}
    x = strong[share].clone().requires_grad_()
    for turn in range(2):
        with torch.no_grad():
            forward_weak = both_paths(model, weak[share], labels[share], case)
        logits = both_paths(model, x, labels[share], case)
        loss = nn.functional.cross_entropy(logits[0], labels[share], reduction="sum") / 8
        loss = loss + (logits[0] * logits[-1]).sum() / 8 + (logits[-1] - forward_weak[0]).square().sum() / 8
        loss.backward()
        for path, values in enumerate([*logits, *forward_weak]):
            found[f"logits {turn} {path}"] = values.detach()
    assert x.grad is not None
    found["logits gradient of x"] = x.grad
    for name, parameter in model.named_parameters():
        found[f"gradient {name}"] = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    return found | {f"buffer {name}": buffer for name, buffer in model.named_buffers()}


def both_paths(model: nn.Module, x: Tensor, labels: Tensor, case: Case) -> list[Tensor]:
    """Logits of the compound path and, but for plain batch norm, of the split path."""
    compound = model(x)
    if case.config is None:
        return [compound]
    with split_path(model, labels):
        return [compound, model(x)]


def save_steps(rank: int, world_size: int, folder: Path) -> None:
    """Every case's step on this rank, for the test to compare."""
    assert world_size == 2
    torch.save({name: step(case, rank) for name, case in CASES.items()}, folder / f"rank{rank}.pt")
