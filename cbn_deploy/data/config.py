"""What to load and how to augment it, as plain values that a recipe can hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

__all__ = ["Crop", "DataConfig", "Policy", "Source", "ViewConfig"]

Source = Literal[
    "digits-lt", "cifar10-lt", "cifar100-lt", "image-folder", "imagenet-lt", "places-lt", "inaturalist2018"
]
Crop = Literal["padded", "resized"]
Policy = Literal["cifar10", "imagenet"]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images to train and test on.

    Attributes:
        source: "digits-lt", "cifar10-lt", "cifar100-lt"; "imagenet-lt", "places-lt", "inaturalist2018" by their
            published lists; or "image-folder" (a folder per class or lists).
        rho: imbalance of the subset to draw; ``None`` takes the source's default (20 for the digits, 100 for CIFAR).
            Image folders and published lists are used as they are.
        image_size: height and width in pixels of the model's input; digits and CIFAR are 32.
        resize_shorter: photographs: resize the shorter edge to this and crop the centre; ``None`` squeezes.
        seed: of the subset and of a hold-out split, 0 to 2**32 - 1 (the published CIFAR subsets use 0).
        cache_mb: image folders: keep resized images in memory when they all fit into this many megabytes.
        lists: published sets: the folder of the list files, where it is not that of the images.
    """

    source: Source
    rho: float | None = None
    image_size: int = 32
    resize_shorter: int | None = None
    seed: int = 0
    cache_mb: int = 512
    lists: str | None = None

    def __post_init__(self) -> None:
        if self.source not in get_args(Source):
            raise ValueError(f"source must be one of {get_args(Source)}, got {self.source!r}")
        if self.rho is not None and not self.rho >= 1:
            raise ValueError(f"rho must be at least 1, got {self.rho}")
        if self.image_size < 1:
            raise ValueError(f"image_size must be at least 1, got {self.image_size}")
        if self.resize_shorter is not None and self.resize_shorter < self.image_size:
            raise ValueError(f"resize_shorter must be at least image_size={self.image_size}, got {self.resize_shorter}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be from 0 to {2**32 - 1}, got {self.seed}")
        if self.cache_mb < 0:
            raise ValueError(f"cache_mb must not be negative, got {self.cache_mb}")


@dataclass(frozen=True, kw_only=True)
class ViewConfig:
    """How a training image is distorted. The weak view is crop and flip; the strong view adds the rest.

    Attributes:
        crop: "padded" pads every side by ``padding`` and crops at a random place (small images); "resized" cuts a
            random part of the full image and resizes it (photographs).
        padding: pixels on every side, for the padded crop; 0 does not crop.
        min_area: smallest part of the image's area that a resized crop takes, in (0, 1].
        flip: mirror left-right with probability 1/2; wrong for digits and letters.
        autoaugment: apply AutoAugment in the strong view.
        policy: which of its policies, "cifar10" or "imagenet".
        cutout: side in pixels of the square hidden in the strong view; 0 hides nothing.
    """

    crop: Crop = "padded"
    padding: int = 4
    min_area: float = 0.25
    flip: bool = True
    autoaugment: bool = True
    cutout: int = 16
    policy: Policy = "cifar10"

    def __post_init__(self) -> None:
        if self.crop not in get_args(Crop):
            raise ValueError(f"crop must be one of {get_args(Crop)}, got {self.crop!r}")
        if self.policy not in get_args(Policy):
            raise ValueError(f"policy must be one of {get_args(Policy)}, got {self.policy!r}")
        if self.padding < 0 or self.cutout < 0:
            raise ValueError(f"padding and cutout must not be negative, got {self.padding} and {self.cutout}")
        if not 0 < self.min_area <= 1:
            raise ValueError(f"min_area must be in (0, 1], got {self.min_area}")
