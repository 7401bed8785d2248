"""The optimizer of a recipe."""

from __future__ import annotations

import torch
from torch import nn

from cbn_deploy.training.recipe import OptimizerConfig

__all__ = ["make_optimizer"]


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.SGD:
    """SGD with momentum in two groups: convolutions and linear layers, and everything else (normalisation).

    Weight decay applies to both unless ``config.decay_norm`` is off.
    """
    weights: list[nn.Parameter] = []
    norm: list[nn.Parameter] = []
    for module in model.modules():
        group = weights if isinstance(module, nn.Conv2d | nn.Linear) else norm
        group.extend(module.parameters(recurse=False))
    groups = [
        {"params": weights, "weight_decay": config.weight_decay},
        {"params": norm, "weight_decay": config.weight_decay if config.decay_norm else 0.0},
    ]
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)
