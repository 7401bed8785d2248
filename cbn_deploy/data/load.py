"""From a :class:`DataConfig` to images."""

from __future__ import annotations

from pathlib import Path

from cbn_deploy.data.cifar import DEFAULT_RHO as CIFAR_RHO
from cbn_deploy.data.cifar import load_cifar_lt
from cbn_deploy.data.config import DataConfig
from cbn_deploy.data.digits import DEFAULT_RHO as DIGITS_RHO
from cbn_deploy.data.digits import load_digits_lt
from cbn_deploy.data.image_set import LongTailedData
from cbn_deploy.data.user_images import load_image_folder
from cbn_deploy.errors import DataError
from cbn_deploy.runtime.description import Preprocessing

__all__ = ["image_folder_preprocessing", "load_data"]


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
    return load_image_folder(
        data_dir, image_folder_preprocessing(config), seed=config.seed, cache_bytes=config.cache_mb * 10**6
    )


def image_folder_preprocessing(config: DataConfig) -> Preprocessing:
    """Size from ``config``; normalised with ImageNet's statistics, as is usual for photographs."""
    return Preprocessing(
        height=config.image_size,
        width=config.image_size,
        resize_shorter=config.resize_shorter,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )
