"""Architectures by name, with compound or plain batch normalisation."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from cbn_deploy.models.basic_block import NormFactory
from cbn_deploy.models.classifier import ClassifierFactory, CosineClassifier
from cbn_deploy.models.resnet_cifar import CifarResNet
from cbn_deploy.models.resnet_imagenet import Bottleneck, ImageNetResNet, ProjectedBasicBlock
from cbn_deploy.norm import DualPathBatchNorm2d, NormConfig, class_groups

__all__ = ["BN_SUFFIX", "MODEL_NAMES", "ArchitectureConfig", "bn_twin", "create_model"]

BN_SUFFIX = "-bn"
_CIFAR_DEPTHS = {
    "resnet8": 8,
    "resnet14": 14,
    "resnet20": 20,
    "resnet32": 32,
    "resnet44": 44,
    "resnet56": 56,
    "resnet110": 110,
}
# The kind of block, and how many in each stage.
_IMAGENET_BLOCKS: dict[str, tuple[type[ProjectedBasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    "resnet18": (ProjectedBasicBlock, (2, 2, 2, 2)),
    "resnet34": (ProjectedBasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
    "resnet152": (Bottleneck, (3, 8, 36, 3)),
}
_NETWORKS = (*_CIFAR_DEPTHS, *_IMAGENET_BLOCKS)
MODEL_NAMES = _NETWORKS + tuple(name + BN_SUFFIX for name in _NETWORKS)


@dataclass(frozen=True, kw_only=True)
class ArchitectureConfig:
    """Everything needed to build a network before its weights are loaded.

    Attributes:
        name: one of :data:`MODEL_NAMES`; the suffix ``-bn`` is the same network with plain batch norm.
        num_classes: K.
        norm: the mixture layers' config; ``None`` exactly for the ``-bn`` names.
        cosine_scale: ``None``: the last layer is linear, with bias; otherwise it is a
            :class:`cbn_deploy.models.classifier.CosineClassifier` of this scale.
    """

    name: str
    num_classes: int
    norm: NormConfig | None = None
    cosine_scale: float | None = None

    def __post_init__(self) -> None:
        if self.name not in MODEL_NAMES:
            raise ValueError(f"model must be one of {', '.join(MODEL_NAMES)}, got {self.name!r}")
        if isinstance(self.num_classes, bool) or not isinstance(self.num_classes, int):
            raise TypeError(f"num_classes must be a whole number, got {self.num_classes!r}")
        if self.num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {self.num_classes}")
        if self.name.endswith(BN_SUFFIX) != (self.norm is None):
            raise ValueError(f"{self.name} {'takes no' if self.norm else 'needs a'} norm config")
        if self.cosine_scale is not None and not 0 < self.cosine_scale < math.inf:
            raise ValueError(f"cosine_scale must be above 0 or None, got {self.cosine_scale}")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types (inverse of :meth:`from_dict`)."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> ArchitectureConfig:
        """Rebuild from :meth:`to_dict`; raises KeyError, TypeError or ValueError on unknown or impossible values."""
        norm, scale = plain["norm"], plain.get("cosine_scale")
        return cls(
            name=str(plain["name"]),
            num_classes=plain["num_classes"],
            norm=None if norm is None else NormConfig.from_dict(norm),
            cosine_scale=None if scale is None else float(scale),
        )


def bn_twin(architecture: ArchitectureConfig) -> ArchitectureConfig:
    """The same network with plain batch normalisation."""
    return dataclasses.replace(architecture, name=architecture.name.removesuffix(BN_SUFFIX) + BN_SUFFIX, norm=None)


def create_model(architecture: ArchitectureConfig, class_counts: Sequence[int] | None = None) -> nn.Module:
    """Build the network with fresh weights (torch's global generator).

    Args:
        architecture: name, classes and normalisation.
        class_counts: K training counts, needed by ``class_grouping="frequency"`` only.

    Returns:
        A module from images (B, 3, H, W) to logits (B, K).
    """
    name, norm = architecture.name.removesuffix(BN_SUFFIX), _norm_factory(architecture, class_counts)
    classifier = _classifier_factory(architecture)
    if name in _IMAGENET_BLOCKS:
        return ImageNetResNet(*_IMAGENET_BLOCKS[name], architecture.num_classes, norm, classifier)
    return CifarResNet(_CIFAR_DEPTHS[name], architecture.num_classes, norm, classifier)


def _classifier_factory(architecture: ArchitectureConfig) -> ClassifierFactory:
    scale = architecture.cosine_scale
    if scale is None:
        return nn.Linear
    return lambda in_features, num_classes: CosineClassifier(in_features, num_classes, scale)


def _norm_factory(architecture: ArchitectureConfig, class_counts: Sequence[int] | None) -> NormFactory:
    norm = architecture.norm
    if norm is None:
        return nn.BatchNorm2d
    groups = class_groups(architecture.num_classes, norm.groups, norm.class_grouping, class_counts)
    return lambda channels: DualPathBatchNorm2d(channels, groups, norm)
