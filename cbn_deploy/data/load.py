"""From a :class:`DataConfig` to images."""

from __future__ import annotations

from pathlib import Path

from cbn_deploy.data.config import DataConfig
from cbn_deploy.data.digits import DEFAULT_RHO, load_digits_lt
from cbn_deploy.data.image_set import LongTailedData
from cbn_deploy.errors import DataError

__all__ = ["load_data"]


def load_data(config: DataConfig, data_dir: Path | None = None) -> LongTailedData:
    """Load what ``config`` names.

    Args:
        config: source, rho, size.
        data_dir: where the files are; the digits need none.

    Raises:
        DataError: files are missing, damaged or do not fit; the message says which are expected.
    """
    if config.source == "digits-lt":
        return load_digits_lt(config.rho or DEFAULT_RHO, config.seed)
    raise DataError(f"{config.source} cannot be loaded yet from {data_dir}.")
