"""Make a network's normalisation count the pixels of all ranks of a distributed training as one batch.

On the way forward the sums behind the moments are added up over the ranks (:mod:`cbn_deploy.norm.ranks`), on the way
back the gradients of mean and var (:func:`cbn_deploy.kernels.moment_gradients.moments_of_all_ranks`). Posteriors need
nothing: they come from the running statistics, which are the same on every rank.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cbn_deploy.norm.functional import Moments, group_moments, moving_average
from cbn_deploy.norm.layers import MixtureBatchNorm
from cbn_deploy.norm.ranks import moments_of_all_ranks
from cbn_deploy.norm.replace import replace_modules

__all__ = ["SynchronizedBatchNorm2d", "synchronize"]


def synchronize(model: nn.Module) -> nn.Module:
    """``model`` itself, its layers changed in place: training batches are normalised by all ranks' moments.

    Plain batch norm becomes torch's SyncBatchNorm where its parameters lie on CUDA and
    :class:`SynchronizedBatchNorm2d` elsewhere. State dicts stay as they were. Every rank has to run the same passes
    in the same order; a rank's share of a batch may be empty.

    Raises:
        ValueError: ``model`` is itself a batch norm, which cannot be replaced in place.
    """
    if type(model) is nn.BatchNorm2d:
        raise ValueError("synchronize: wrap the batch norm in a module, so that it can be replaced")
    for module in model.modules():
        if isinstance(module, MixtureBatchNorm):
            module.synchronized = True
    return replace_modules(model, lambda _, module: _synchronized(module) if type(module) is nn.BatchNorm2d else None)


def _synchronized(source: nn.BatchNorm2d) -> nn.Module:
    if source.weight.device.type == "cuda":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(source)  # type: ignore[no-untyped-call]  # torch's
        return converted
    layer = SynchronizedBatchNorm2d(source.num_features, source.eps, source.momentum)
    layer.to(source.weight.dtype).train(source.training)
    layer.load_state_dict(source.state_dict())
    # The optimizer may hold them already.
    layer.weight, layer.bias = source.weight, source.bias
    return layer


class SynchronizedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm over the pixels of all ranks, on any device; torch's own ``SyncBatchNorm`` refuses the CPU."""

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, H, W) -> the same shape; B may be 0 on some ranks."""
        if not self.training:
            return super().forward(x)
        groups = torch.zeros(len(x), dtype=torch.long, device=x.device)
        batch = moments_of_all_ranks(group_moments(x, groups, 1), self.running_mean[None])
        self._learn(batch)
        tables = (batch.mean, batch.var, 1.0 / batch.mass, self.weight[None], self.bias[None])
        y: Tensor = torch.ops.cbn.split_normalize(x, groups, *tables, self.eps, synchronized=True)
        return y

    def _learn(self, batch: Moments) -> None:
        self.num_batches_tracked = self.num_batches_tracked + 1
        momentum = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        unbiased = batch.var * (batch.mass / (batch.mass - 1.0))[:, None]
        # Rebound, not written in place, as in the mixture layers.
        self.running_mean = moving_average(self.running_mean, batch.mean[0].to(self.running_mean.dtype), momentum)
        self.running_var = moving_average(self.running_var, unbiased[0].to(self.running_var.dtype), momentum)
