"""The optimizer of a recipe."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cbn_deploy.training.recipe import OptimizerConfig

__all__ = ["make_optimizer", "set_learning_rate", "use_kernels_of"]


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


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float | Tensor) -> None:
    """Of all groups; a tensor on the device, which a recorded step reads anew, takes the fused kernels."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def use_kernels_of(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """One fused kernel on CUDA, torch's choice elsewhere, whatever a restored state says."""
    for group in optimizer.param_groups:
        group["fused"] = True if device.type == "cuda" else None
