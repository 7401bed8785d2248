"""Compound Batch Normalization: functional (the equations) -> statistics -> layers -> frozen -> convert."""

from cbn_deploy.norm.buffers import buffers_in_place
from cbn_deploy.norm.config import NormConfig
from cbn_deploy.norm.convert import convert_batchnorm
from cbn_deploy.norm.diagnostics import MixtureHealth, MixtureTally, mixture_health
from cbn_deploy.norm.frozen import FrozenCompoundBatchNorm2d, freeze
from cbn_deploy.norm.functional import compound_batch_norm_naive
from cbn_deploy.norm.grouping import class_groups
from cbn_deploy.norm.layers import (
    CompoundBatchNorm2d,
    DualPathBatchNorm2d,
    MixtureBatchNorm,
    SplitBatchNorm2d,
    split_path,
)
from cbn_deploy.norm.synchronized import SynchronizedBatchNorm2d, synchronize

__all__ = [
    "CompoundBatchNorm2d",
    "DualPathBatchNorm2d",
    "FrozenCompoundBatchNorm2d",
    "MixtureBatchNorm",
    "MixtureHealth",
    "MixtureTally",
    "NormConfig",
    "SplitBatchNorm2d",
    "SynchronizedBatchNorm2d",
    "buffers_in_place",
    "class_groups",
    "compound_batch_norm_naive",
    "convert_batchnorm",
    "freeze",
    "mixture_health",
    "split_path",
    "synchronize",
]
