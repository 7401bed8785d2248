"""The layer after training: statistics and affine tables are constants, the split path is gone."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

import cbn_deploy.kernels  # noqa: F401 - registers torch.ops.cbn
from cbn_deploy.norm.layers import CompoundBatchNorm2d, DualPathBatchNorm2d, MixtureBatchNorm, SplitBatchNorm2d
from cbn_deploy.norm.replace import replace_modules

__all__ = ["FrozenCompoundBatchNorm2d", "freeze"]


class FrozenCompoundBatchNorm2d(nn.Module):
    """Inference-only compound batch norm: one call of ``torch.ops.cbn.compound_batch_norm``.

    Buffers: ``tau`` (M,), ``mean``, ``var``, ``scale``, ``bias`` (M, D). Attributes: ``epsilon``, ``density_scale``.
    """

    tau: Tensor
    mean: Tensor
    var: Tensor
    scale: Tensor
    bias: Tensor

    def __init__(
        self,
        tau: Tensor,
        mean: Tensor,
        var: Tensor,
        scale: Tensor,
        bias: Tensor,
        epsilon: float,
        density_scale: float,
    ) -> None:
        super().__init__()
        shapes = {tuple(t.shape) for t in (mean, var, scale, bias)}
        if tau.ndim != 1 or len(shapes) != 1 or mean.ndim != 2 or len(mean) != len(tau):
            raise ValueError(f"expected tau (M,) and tables (M, D), got {tuple(tau.shape)} and {sorted(shapes)}")
        for name, table in (("tau", tau), ("mean", mean), ("var", var), ("scale", scale), ("bias", bias)):
            self.register_buffer(name, table.detach().clone())
        self.epsilon = epsilon
        self.density_scale = density_scale

    @classmethod
    def from_layer(cls, layer: MixtureBatchNorm) -> FrozenCompoundBatchNorm2d:
        """Freeze the compound path of a trained layer."""
        return cls(*layer.running, *layer.inference_affine(), layer.config.eps, layer.density_scale)

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        components, features = self.mean.shape
        return f"{features}, components={components}, density_scale={self.density_scale:.4g}"

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, *spatial) -> the same shape and dtype."""
        y: Tensor = torch.ops.cbn.compound_batch_norm(
            x, self.tau, self.mean, self.var, self.scale, self.bias, self.epsilon, self.density_scale
        )
        return y

    def posterior(self, x: Tensor) -> Tensor:
        """Which component claims which pixel: (B, D, *spatial) -> (B, M, *spatial), float32 for float32 ``x``."""
        w: Tensor
        _, w = torch.ops.cbn.compound_batch_norm_posterior(
            x, self.tau, self.mean, self.var, self.scale, self.bias, self.epsilon, self.density_scale
        )
        return w


def freeze(model: nn.Module) -> nn.Module:
    """A copy of ``model`` in eval mode, every mixture layer replaced by its frozen compound path.

    Raises:
        ValueError: the model holds a :class:`SplitBatchNorm2d`, which cannot run without labels.
    """
    frozen = replace_modules(copy.deepcopy(model).eval(), _frozen_layer)
    return frozen.requires_grad_(False)


def _frozen_layer(name: str, module: nn.Module) -> nn.Module | None:
    if isinstance(module, SplitBatchNorm2d):
        raise ValueError(f"{name} is a SplitBatchNorm2d, which needs labels; train with a dual-path layer to freeze it")
    if isinstance(module, CompoundBatchNorm2d | DualPathBatchNorm2d):
        return FrozenCompoundBatchNorm2d.from_layer(module).eval()
    return None
