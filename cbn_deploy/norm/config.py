"""Every choice that the paper's text leaves open, as one small config with named values."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

__all__ = [
    "ClassGrouping",
    "DensityScale",
    "Initialization",
    "NormConfig",
    "Normalizer",
    "SplitAffine",
    "StatisticsReading",
]

StatisticsReading = Literal["batch_em", "algorithm2", "update_then_read"]
DensityScale = Literal["joint", "rsqrt_channels", "mean_channels"]
Initialization = Literal["identical", "normal_means", "variance_ladder", "first_batch"]
ClassGrouping = Literal["contiguous", "strided", "frequency"]
SplitAffine = Literal["shared", "separate"]
Normalizer = Literal["compound", "shared"]


@dataclass(frozen=True, kw_only=True)
class NormConfig:
    """How a mixture layer normalises and learns.

    Attributes:
        components: M >= 1, the number of Gaussians; 1 is batch normalisation.
        eps: added to the variances, in density and normaliser alike.
        momentum: weight of the NEW statistics in the moving average (torch's convention, 1 - lambda of the paper).
        statistics: reading of the training statistics, see :mod:`cbn_deploy.norm.statistics`.
        density_scale: factor s of the log-density: "joint" is 1 (the paper), "rsqrt_channels" 1/sqrt(D)
            keeps posteriors soft in wide layers, "mean_channels" 1/D merges the components; or a number.
        posterior_gradient: whether gradient flows through the posteriors.
        initialization: how the components start, see :mod:`cbn_deploy.norm.initialization`.
        split_affine: whether the split path shares scale and bias with the compound path or has its own.
        split_groups: class groups of the split path. ``None``: one for every component, whose statistics it shares. A
            number: that many, with statistics and tables of their own (``components=1, split_groups=4`` is the paper's
            "Baseline + SBN": batch norm beside split batch norm).
        normalizer: what a dual-path layer trained with ``batch_em`` is normalised by after training: "compound", moving
            averages of the compound path's own moments, which normalised it in training; or "shared", the statistics of
            the density, which the split path moves, too. Either becomes part of the op's scale and bias.
        class_grouping: how classes are divided among the components for the split path.
    """

    components: int = 4
    eps: float = 1e-5
    momentum: float = 0.1
    statistics: StatisticsReading = "batch_em"
    density_scale: DensityScale | float = "rsqrt_channels"
    posterior_gradient: bool = True
    initialization: Initialization = "normal_means"
    split_affine: SplitAffine = "shared"
    split_groups: int | None = None
    normalizer: Normalizer = "compound"
    class_grouping: ClassGrouping = "contiguous"

    def __post_init__(self) -> None:
        _check_count("components", self.components)
        if self.split_groups is not None:
            _check_count("split_groups", self.split_groups)
        if not 0 < self.eps < math.inf:
            raise ValueError(f"eps must be above 0 and finite, got {self.eps}")
        if not 0 < self.momentum <= 1:
            raise ValueError(f"momentum must be in (0, 1], got {self.momentum}")
        choices: dict[str, Any] = {
            "statistics": StatisticsReading,
            "initialization": Initialization,
            "split_affine": SplitAffine,
            "normalizer": Normalizer,
            "class_grouping": ClassGrouping,
        }
        if isinstance(self.density_scale, str):
            choices["density_scale"] = DensityScale
        elif not 0 < self.density_scale < math.inf:
            raise ValueError(f"density_scale must be above 0 and finite, got {self.density_scale}")
        for name, literal in choices.items():
            if getattr(self, name) not in get_args(literal):
                raise ValueError(f"{name} must be one of {', '.join(get_args(literal))}, got {getattr(self, name)!r}")

    @property
    def groups(self) -> int:
        """Class groups of the split path."""
        return self.components if self.split_groups is None else self.split_groups

    def density_factor(self, num_features: int) -> float:
        """The number s for a layer of ``num_features`` channels."""
        if isinstance(self.density_scale, str):
            exponent = {"joint": 0.0, "rsqrt_channels": -0.5, "mean_channels": -1.0}[self.density_scale]
            return math.pow(num_features, exponent)
        return float(self.density_scale)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types (inverse of :meth:`from_dict`)."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> NormConfig:
        """Rebuild from :meth:`to_dict`; raises TypeError or ValueError on unknown or impossible values."""
        return cls(**plain)


def _check_count(name: str, number: object) -> None:
    # Values come from files, too, and of 2.5 or True torch says only that it is no size.
    if isinstance(number, bool) or not isinstance(number, int):
        raise TypeError(f"{name} must be a whole number, got {number!r}")
    if number < 1:
        raise ValueError(f"{name} must be at least 1, got {number}")
