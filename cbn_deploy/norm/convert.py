"""Turn any torch model's batch norm into compound batch norm without changing what it computes."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from cbn_deploy.norm.config import NormConfig
from cbn_deploy.norm.layers import CompoundBatchNorm2d, DualPathBatchNorm2d, MixtureBatchNorm
from cbn_deploy.norm.replace import replace_modules

__all__ = ["convert_batchnorm"]


def convert_batchnorm(
    model: nn.Module,
    config: NormConfig | None = None,
    class_groups: Tensor | None = None,
    symmetry_break: float = 0.1,
) -> nn.Module:
    """A copy of ``model`` in which every BatchNorm2d is a mixture of M copies of itself.

    In eval mode the copy computes the same function. The means of the copies are spread by ``symmetry_break`` standard
    deviations (equal components would stay equal for ever) and each bias takes the shift back:
    gamma (x - mu - d) / sigma + (beta + gamma d / sigma) = gamma (x - mu) / sigma + beta.

    A batch norm that brings its activation with it, as timm's ``BatchNormAct2d`` does, becomes a Sequential of the
    layer and what it had behind it.

    Args:
        model: any module with :class:`torch.nn.BatchNorm2d` inside.
        config: M and the rest; each layer keeps its own ``eps``, and its ``momentum`` unless that is None.
        class_groups: int64 (K,): given, the layers get a split path (:class:`DualPathBatchNorm2d`).
        symmetry_break: spread of the means, in standard deviations of the channel; 0 gives the fixed point.

    Raises:
        ValueError: no BatchNorm2d in the model, one without running statistics, or one that computes something else
            (a subclass with a forward of its own, SyncBatchNorm).
    """
    config = config or NormConfig()
    names: list[str] = []

    def mixture(batch_norm: nn.BatchNorm2d) -> nn.Module:
        return _converted(batch_norm, config, class_groups, symmetry_break)

    def replacement(name: str, module: nn.Module) -> nn.Module | None:
        if isinstance(module, nn.SyncBatchNorm):
            raise ValueError(
                f"convert_batchnorm: {name or 'the model'} is a SyncBatchNorm; convert the network before "
                "nn.SyncBatchNorm.convert_sync_batchnorm"
            )
        if not isinstance(module, nn.BatchNorm2d):
            return None
        names.append(name)
        if type(module).forward is nn.BatchNorm2d.forward:
            return mixture(module)
        if not _activates_what_it_normalizes(module, mixture):
            raise ValueError(
                f"convert_batchnorm: {name or 'the model'} is a {type(module).__name__}, which has a forward of its "
                "own; replace it by a torch.nn.BatchNorm2d and what it does besides"
            )
        return _with_activation(mixture(module), module)

    converted = replace_modules(copy.deepcopy(model), replacement)
    if not names:
        raise ValueError("convert_batchnorm: the model has no BatchNorm2d")
    return converted


def _with_activation(layer: nn.Module, source: nn.BatchNorm2d) -> nn.Module:
    behind = [module for key in ("drop", "act") if (module := getattr(source, key, None)) is not None]
    behind = [module for module in behind if not isinstance(module, nn.Identity)]
    return nn.Sequential(layer, *behind) if behind else layer


@torch.no_grad()
def _activates_what_it_normalizes(source: nn.BatchNorm2d, mixture: Callable[[nn.BatchNorm2d], nn.Module]) -> bool:
    """Whether its forward is normalise, drop, activate: tried, with statistics for which no other order is the same."""
    probe = copy.deepcopy(source).eval()
    if probe.running_mean is None or probe.running_var is None:
        return True  # has nothing to carry over, which is said elsewhere
    probe.running_mean.normal_()
    probe.running_var.uniform_(0.5, 2.0)
    for parameter in (probe.weight, probe.bias):
        if parameter is not None:
            parameter.normal_()
    x = torch.randn(32, probe.num_features, 1, 1).to(probe.running_mean)
    converted = _with_activation(mixture(probe), probe).eval()
    return torch.allclose(converted(x.clone()), probe(x.clone()), rtol=1e-3, atol=1e-3)


def _converted(
    source: nn.BatchNorm2d, config: NormConfig, class_groups: Tensor | None, symmetry_break: float
) -> CompoundBatchNorm2d | DualPathBatchNorm2d:
    if source.running_mean is None or source.running_var is None:
        raise ValueError("convert_batchnorm: a BatchNorm2d without running statistics has nothing to carry over")
    momentum = config.momentum if source.momentum is None else source.momentum
    # The statistics come from the source; only their spread is ours.
    config = NormConfig(**{**config.to_dict(), "eps": source.eps, "momentum": momentum, "initialization": "identical"})
    layer: CompoundBatchNorm2d | DualPathBatchNorm2d
    if class_groups is None:
        layer = CompoundBatchNorm2d(source.num_features, config)
    else:
        layer = DualPathBatchNorm2d(source.num_features, class_groups, config)
    layer.to(source.running_mean.device, source.running_mean.dtype).train(source.training)
    _carry_over(source, layer, symmetry_break)
    return layer


@torch.no_grad()
def _carry_over(source: nn.BatchNorm2d, layer: MixtureBatchNorm, symmetry_break: float) -> None:
    mean, var = source.running_mean, source.running_var
    assert mean is not None  # noqa: S101 - checked by the caller
    assert var is not None  # noqa: S101
    gamma = source.weight if source.affine else torch.ones_like(mean)
    beta = source.bias if source.affine else torch.zeros_like(mean)
    sigma = (var + source.eps).sqrt()
    spread = symmetry_break * sigma * torch.randn_like(layer.running_mean)
    if layer.config.components == 1:
        spread = torch.zeros_like(spread)
    layer.running_mean = mean + spread
    layer.running_var = var.expand_as(layer.running_var).clone()
    if isinstance(layer, DualPathBatchNorm2d) and layer.compound_mean is not None:
        layer.compound_mean, layer.compound_var = layer.running_mean.clone(), layer.running_var.clone()
    layer.weight.copy_(gamma.expand_as(layer.weight))
    layer.bias.copy_(beta + gamma * spread / sigma)
    if isinstance(layer, DualPathBatchNorm2d) and layer.split is not None:
        _carry_over(source, layer.split, symmetry_break)
    elif isinstance(layer, DualPathBatchNorm2d) and layer.config.split_affine == "separate":
        layer.split_weight.copy_(layer.weight)
        layer.split_bias.copy_(layer.bias)
    if source.num_batches_tracked is not None:
        layer.num_batches_tracked = source.num_batches_tracked.clone()
