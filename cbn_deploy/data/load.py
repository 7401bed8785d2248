"""From a :class:`DataConfig` to images."""

from __future__ import annotations

from pathlib import Path

from cbn_deploy.data.cifar import DEFAULT_RHO as CIFAR_RHO
from cbn_deploy.data.cifar import load_cifar_lt
from cbn_deploy.data.config import DataConfig
from cbn_deploy.data.digits import DEFAULT_RHO as DIGITS_RHO
from cbn_deploy.data.digits import load_digits_lt
from cbn_deploy.data.image_set import LongTailedData
from cbn_deploy.data.published_lists import load_published
from cbn_deploy.data.published_sets import IMAGENET_LT, PUBLISHED_SETS
from cbn_deploy.data.user_images import load_image_folder
from cbn_deploy.errors import DataError
from cbn_deploy.runtime.description import Preprocessing

__all__ = ["load_data", "photograph_preprocessing"]


def load_data(config: DataConfig, data_dir: Path | None = None) -> LongTailedData:
    """Load what ``config`` names.

    Args:
        config: source, rho, size.
        data_dir: where the files are; the digits need none.

    Raises:
        DataError: files are missing, damaged or do not fit; the message says which are expected.
    """
    if config.source == "digits-lt":
        return load_digits_lt(config.rho or DIGITS_RHO, config.seed)
    if data_dir is None:
        raise DataError(f"{config.source} needs its images: say where they are with --data DIR.")
    if config.source == "cifar10-lt":
        return load_cifar_lt("cifar10", data_dir, config.rho or CIFAR_RHO, config.seed)
    if config.source == "cifar100-lt":
        return load_cifar_lt("cifar100", data_dir, config.rho or CIFAR_RHO, config.seed)
    if config.source in PUBLISHED_SETS:
        lists = None if config.lists is None else Path(config.lists)
        return load_published(PUBLISHED_SETS[config.source], data_dir, photograph_preprocessing(config), lists)
    return load_image_folder(
        data_dir, photograph_preprocessing(config), seed=config.seed, cache_bytes=config.cache_mb * 10**6
    )


def photograph_preprocessing(config: DataConfig) -> Preprocessing:
    """Size from ``config``; normalised with the published set's statistics, or else ImageNet's, as is usual."""
    statistics = PUBLISHED_SETS.get(config.source, IMAGENET_LT)
    return Preprocessing(
        height=config.image_size,
        width=config.image_size,
        resize_shorter=config.resize_shorter,
        mean=statistics.mean,
        std=statistics.std,
    )
