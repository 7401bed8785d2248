"""The trainable layers: compound, split, and both over one set of statistics.

State-dict keys (a contract: checkpoints and the exporter rely on it), M components, D channels:
``weight`` (M, D), ``bias`` (M, D), ``running_tau`` (M,), ``running_mean`` (M, D), ``running_var`` (M, D),
``num_batches_tracked`` (); layers with a split path add ``class_groups`` (K,) and, with their own affine tables,
``split_weight`` (M, D) and ``split_bias`` (M, D); with statistics of its own it is a layer, ``split.*``; dual layers
over shared statistics add ``compound_mean`` and ``compound_var``, both (M, D).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

import cbn_deploy.kernels  # noqa: F401 - registers torch.ops.cbn
from cbn_deploy.kernels.memory_format import readable
from cbn_deploy.norm import functional
from cbn_deploy.norm.config import NormConfig
from cbn_deploy.norm.initialization import initial_statistics, statistics_of_first_batch
from cbn_deploy.norm.learning import NormalizerAverages, learn
from cbn_deploy.norm.ranks import moments_of_all_ranks
from cbn_deploy.norm.statistics import MixtureStatistics, TrainingStep

__all__ = ["CompoundBatchNorm2d", "DualPathBatchNorm2d", "MixtureBatchNorm", "SplitBatchNorm2d", "split_path"]


class MixtureBatchNorm(nn.Module):
    """Base of the layers below: affine tables, running statistics, and how a training batch changes them.

    Args:
        num_features: D.
        config: see :class:`NormConfig`.

    Input (B, D, *spatial) with any number of spatial axes, float32 or float64; output alike. In training at least two
    pixels a channel are needed, as in torch's batch norm.

    Attributes:
        synchronized: moments are those of all ranks' pixels (:func:`cbn_deploy.norm.synchronize`).
    """

    running_tau: Tensor
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, num_features: int, config: NormConfig | None = None) -> None:
        super().__init__()
        if num_features < 1:
            raise ValueError(f"num_features must be at least 1, got {num_features}")
        self.num_features = num_features
        self.config = config or NormConfig()
        self.density_scale = self.config.density_factor(num_features)
        self.synchronized = False
        shape = (self.config.components, num_features)
        self.weight = nn.Parameter(torch.ones(shape))
        self.bias = nn.Parameter(torch.zeros(shape))
        initial = initial_statistics(self.config.initialization, *shape)
        self.register_buffer("running_tau", initial.tau)
        self.register_buffer("running_mean", initial.mean)
        self.register_buffer("running_var", initial.var)
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long))

    @property
    def running(self) -> MixtureStatistics:
        """The running statistics, as the functions of :mod:`cbn_deploy.norm` take them."""
        return MixtureStatistics(self.running_tau, self.running_mean, self.running_var)

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        c = self.config
        return (
            f"{self.num_features}, components={c.components}, statistics={c.statistics}, "
            f"density_scale={self.density_scale:.4g}, momentum={c.momentum}"
        )

    @torch.no_grad()
    def posterior(self, x: Tensor) -> Tensor:
        """Eq. (8) under the running statistics: (B, M, *spatial), without gradient."""
        w: Tensor = torch.ops.cbn.compound_batch_norm_posterior(x, *self._constants())[1]
        return w

    def _compound(self, x: Tensor) -> Tensor:
        if not self.training:
            frozen: Tensor = torch.ops.cbn.compound_batch_norm(x, *self._constants())
            return frozen
        if self.config.initialization == "first_batch" and self.num_batches_tracked == 0:
            self._store(statistics_of_first_batch(x, self.config.components, self.synchronized))
        x, eps = readable(x), self.config.eps  # once, not in every operator
        w, centre, quadratic, linear, *moments = torch.ops.cbn.mixture_statistics(
            x.detach(), *self.running, eps, self.density_scale
        )
        if not self.config.posterior_gradient:
            quadratic, linear = torch.zeros_like(quadratic), torch.zeros_like(linear)
        batch = self._of_all_ranks(functional.Moments(*moments))
        mean, var, inverse_mass, _ = self._learn(batch, update_tau=True)
        y: Tensor = torch.ops.cbn.mixture_normalize(
            x, w, centre, quadratic, linear, mean, var, inverse_mass, self.weight, self.bias, eps, self.synchronized
        )
        return y

    def inference_affine(self) -> tuple[Tensor, Tensor]:
        """The op's scale and bias, both (M, D): they stand beside the running statistics, density and normaliser."""
        return self.weight, self.bias

    def _constants(self) -> tuple[Tensor | float, ...]:
        """What the inference operators take beside x."""
        return (*self.running, *self.inference_affine(), self.config.eps, self.density_scale)

    def _split(self, x: Tensor, groups: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        if len(groups) != len(x):
            raise ValueError(f"split_path was given {len(groups)} labels but the batch has {len(x)} images")
        if self.training:
            moments = self._of_all_ranks(functional.group_moments(x, groups, self.config.components))
            mean, var, inverse_mass, _ = self._learn(moments, update_tau=False)
        else:
            mean, var, inverse_mass = self.running_mean, self.running_var, torch.zeros_like(self.running_tau)
        synchronized = self.synchronized and self.training
        y: Tensor = torch.ops.cbn.split_normalize(
            x, groups, mean, var, inverse_mass, weight, bias, self.config.eps, synchronized
        )
        return y

    def _of_all_ranks(self, batch: functional.Moments) -> functional.Moments:
        return moments_of_all_ranks(batch, self.running_mean) if self.synchronized else batch

    def _averages(self) -> NormalizerAverages | None:
        """What the compound path keeps of its own moments beside the running statistics."""
        return None

    def _store_averages(self, averages: NormalizerAverages) -> None:
        """Keep what a batch has made of :meth:`_averages`."""

    def _learn(self, batch: functional.Moments, update_tau: bool) -> TrainingStep:
        # The priors and the compound path's averages are moved by the same batches.
        averages = self._averages() if update_tau else None
        step, averages, self.num_batches_tracked = learn(
            self.config.statistics,
            self.running,
            averages,
            self.num_batches_tracked,
            batch,
            self.config.momentum,
            update_tau,
        )
        self._store(step.running)
        if averages is not None:
            self._store_averages(averages)
        return step

    def _store(self, statistics: MixtureStatistics) -> None:
        # Rebinding, never writing in place: an earlier forward of the same step still holds the old tensors for its
        # backward.
        self.running_tau, self.running_mean, self.running_var = statistics

    def _check(self, x: Tensor) -> None:
        if x.ndim < 2 or x.shape[1] != self.num_features:
            raise ValueError(f"expected (B, {self.num_features}, *spatial), got {tuple(x.shape)}")
        if self.training and not self.synchronized and x.numel() // self.num_features < 2:
            raise ValueError(f"training needs at least two pixels a channel, got {tuple(x.shape)}")


class CompoundBatchNorm2d(MixtureBatchNorm):
    """Compound batch normalisation, Algorithm 2: every pixel by the Gaussians that claim it."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, *spatial) -> the same shape and memory format."""
        self._check(x)
        return _like(x, self._compound(x))


class _SplitPathNorm(MixtureBatchNorm):
    """Base of the layers that :func:`split_path` switches: they know every class's group, inside it every image's."""

    class_groups: Tensor

    def __init__(self, num_features: int, class_groups: Tensor, config: NormConfig | None = None) -> None:
        super().__init__(num_features, config)
        _check_groups(class_groups, self.config.groups)
        self.register_buffer("class_groups", class_groups.clone())
        self.active_groups: Tensor | None = None


class SplitBatchNorm2d(_SplitPathNorm):
    """Split batch normalisation, Algorithm 3: every image by the Gaussian of its class group (see :func:`split_path`).

    Args:
        num_features: D.
        class_groups: int64 (K,), group of every class (see :func:`cbn_deploy.norm.grouping.class_groups`).
        config: see :class:`NormConfig`.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, *spatial) -> the same shape and memory format; only inside :func:`split_path`."""
        self._check(x)
        if self.active_groups is None:
            raise RuntimeError("SplitBatchNorm2d needs labels: call the model inside `with split_path(model, labels):`")
        return _like(x, self._split(x, self.active_groups, self.weight, self.bias))


class DualPathBatchNorm2d(_SplitPathNorm):
    """Compound normalisation by default, split normalisation inside :func:`split_path`, over one set of statistics.

    Section 3.3.

    Args:
        num_features: D.
        class_groups: int64 (K,), group of every class.
        config: see :class:`NormConfig`; ``split_affine`` says whether the split path has affine tables of its own,
            ``split_groups`` whether statistics, too: then it is a layer of its own, ``split``; ``normalizer`` what
            normalises after training.

    In training the compound path is normalised by its own moments m_j, v_j of the batch, but the shared statistics
    mu_j, var_j are moved by the split path, too: read for both density and normaliser, they would normalise a trained
    network by something it never saw. So the layer keeps moving averages of m_j and v_j beside them, and

        scale_j (x - m_j) / sqrt(v_j + eps) + bias_j  =  scale'_j (x - mu_j) / sqrt(var_j + eps) + bias'_j,
        scale'_j = scale_j sqrt((var_j + eps) / (v_j + eps)),  bias'_j = bias_j + scale_j (mu_j - m_j) / sqrt(v_j + eps)

    makes that the op of Eq. 16 again (:meth:`inference_affine`).
    """

    compound_mean: Tensor | None
    compound_var: Tensor | None

    def __init__(self, num_features: int, class_groups: Tensor, config: NormConfig | None = None) -> None:
        super().__init__(num_features, class_groups, config)
        self.split: SplitBatchNorm2d | None = None
        if self.config.split_groups is not None:
            alone = replace(self.config, components=self.config.split_groups, split_groups=None)
            self.split = SplitBatchNorm2d(num_features, class_groups, alone)
        elif self.config.split_affine == "separate":
            self.split_weight = nn.Parameter(torch.ones_like(self.weight))
            self.split_bias = nn.Parameter(torch.zeros_like(self.bias))
        own = self.split is None and self.config.normalizer == "compound" and self.config.statistics == "batch_em"
        self.register_buffer("compound_mean", self.running_mean.clone() if own else None)
        self.register_buffer("compound_var", self.running_var.clone() if own else None)

    def inference_affine(self) -> tuple[Tensor, Tensor]:
        """The op's scale and bias, both (M, D), with the compound path's own normaliser in them."""
        if self.compound_mean is None or self.compound_var is None:
            return self.weight, self.bias
        # In float64, so that the tables are rounded once.
        var, mean = self.compound_var.double() + self.config.eps, self.compound_mean.double()
        gain = self.weight.double() / var.sqrt()
        scale = gain * (self.running_var.double() + self.config.eps).sqrt()
        bias = self.bias.double() + gain * (self.running_mean.double() - mean)
        return scale.to(self.weight.dtype), bias.to(self.bias.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, *spatial) -> the same shape and memory format."""
        self._check(x)
        if self.active_groups is None:
            return _like(x, self._compound(x))
        if self.split is not None:
            y: Tensor = self.split(x)
            return y
        if self.config.split_affine == "separate":
            return _like(x, self._split(x, self.active_groups, self.split_weight, self.split_bias))
        return _like(x, self._split(x, self.active_groups, self.weight, self.bias))

    def _averages(self) -> NormalizerAverages | None:
        if self.compound_mean is None or self.compound_var is None:
            return None
        if self.config.initialization == "first_batch" and self.num_batches_tracked == 0:
            return NormalizerAverages(self.running_mean, self.running_var)
        return NormalizerAverages(self.compound_mean, self.compound_var)

    def _store_averages(self, averages: NormalizerAverages) -> None:
        self.compound_mean, self.compound_var = averages

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        # A checkpoint from before there was a normaliser of its own is read as what it was.
        for own, shared in (("compound_mean", "running_mean"), ("compound_var", "running_var")):
            if getattr(self, own) is not None and prefix + shared in state_dict:
                state_dict.setdefault(prefix + own, state_dict[prefix + shared].clone())
        super()._load_from_state_dict(state_dict, prefix, *others)


@contextmanager
def split_path(model: nn.Module, labels: Tensor) -> Iterator[None]:
    """Inside the block every split or dual layer of ``model`` normalises by class group; outside, nothing has changed.

    Args:
        model: any module that contains such layers.
        labels: int64 (B,), the class of every image of the batch that goes through ``model`` inside the block.

    Raises:
        ValueError: no such layer in the model, or labels that are not int64 (B,) in range. Whether they are in range
            is looked at on the CPU only: on a GPU that would wait for it, and there torch's own indexing refuses them.
    """
    layers = [m for m in model.modules() if isinstance(m, _SplitPathNorm)]
    if not layers:
        raise ValueError("split_path: the model has no split or dual-path layer")
    if labels.ndim != 1 or labels.dtype != torch.long:
        raise ValueError(f"labels must be int64 (B,), got {labels.dtype} {tuple(labels.shape)}")
    if (
        labels.device.type == "cpu"
        and labels.numel()
        and (int(labels.min()) < 0 or int(labels.max()) >= len(layers[0].class_groups))
    ):
        raise ValueError(f"labels must be in 0..{len(layers[0].class_groups) - 1}")
    before = [layer.active_groups for layer in layers]
    try:
        for layer in layers:
            layer.active_groups = layer.class_groups[labels]
        yield
    finally:
        for layer, groups in zip(layers, before, strict=True):
            layer.active_groups = groups


def _check_groups(class_groups: Tensor, components: int) -> None:
    if class_groups.ndim != 1 or class_groups.dtype != torch.long or class_groups.numel() == 0:
        raise ValueError(f"class_groups must be int64 (K,), got {class_groups.dtype} {tuple(class_groups.shape)}")
    if int(class_groups.min()) < 0 or int(class_groups.max()) >= components:
        raise ValueError(f"class_groups must be in 0..{components - 1}")


def _like(x: Tensor, y: Tensor) -> Tensor:
    """``y`` in the memory format of ``x``: channels_last in, channels_last out."""
    if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
        return y.contiguous(memory_format=torch.channels_last)
    return y
