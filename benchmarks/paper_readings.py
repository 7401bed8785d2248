"""What the paper leaves open, one choice changed at a time: settings of `cbn-train` against the recipe's own."""

from __future__ import annotations

from collections.abc import Mapping

# For CBN with or without the split path.
CHOICES: Mapping[str, tuple[str, ...]] = {
    "density joint": ("norm.density_scale=joint",),
    "density 1/D": ("norm.density_scale=mean_channels",),
    "posterior detached": ("norm.posterior_gradient=false",),
    "momentum 0.9": ("norm.momentum=0.9",),
    "init variance_ladder": ("norm.initialization=variance_ladder",),
    "init first_batch": ("norm.initialization=first_batch",),
    "init identical": ("norm.initialization=identical",),
    "update_then_read, momentum 0.9": ("statistics=update_then_read", "norm.momentum=0.9"),
    "update_then_read, momentum 0.1": ("statistics=update_then_read",),
    "algorithm2, momentum 0.9": ("statistics=algorithm2", "norm.momentum=0.9"),
    "algorithm2, momentum 0.1": ("statistics=algorithm2",),
}
# For the split path and what goes with it.
DUAL_CHOICES: Mapping[str, tuple[str, ...]] = {
    "normaliser shared": ("norm.normalizer=shared",),
    "density joint": ("norm.density_scale=joint",),
    "density 1/D": ("norm.density_scale=mean_channels",),
    "posterior detached": ("norm.posterior_gradient=false",),
    "groups strided": ("norm.class_grouping=strided",),
    "groups by frequency": ("norm.class_grouping=frequency",),
    "split affine separate": ("norm.split_affine=separate",),
}
