from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cbn_deploy.data import DataConfig, load_data
from cbn_deploy.errors import DataError


def test_digits_need_no_files() -> None:
    data = load_data(DataConfig(source="digits-lt", rho=10))
    assert data.name == "digits-lt"
    assert data.class_counts[0] == 130
    assert data.class_counts[-1] == 13


@pytest.mark.parametrize("source", ["cifar10-lt", "cifar100-lt", "image-folder"])
def test_other_sources_need_a_folder(source: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--data DIR"):
        load_data(DataConfig(source=source))
    with pytest.raises(DataError, match="expected"):
        load_data(DataConfig(source=source), tmp_path)


def test_rho_reaches_cifar(shared_data: Path) -> None:
    assert load_data(DataConfig(source="cifar100-lt"), shared_data).class_counts[-1] == 5
    assert load_data(DataConfig(source="cifar100-lt", rho=10), shared_data).class_counts[-1] == 50


@pytest.mark.parametrize(
    "wrong",
    [
        {"source": "mnist"},
        {"source": "digits-lt", "rho": 0.5},
        {"source": "digits-lt", "rho": float("nan")},
        {"source": "image-folder", "image_size": 0},
        {"source": "image-folder", "image_size": 64, "resize_shorter": 32},
        {"source": "image-folder", "cache_mb": -1},
        {"source": "image-folder", "seed": -1},
        {"source": "image-folder", "seed": 2**32},
    ],
)
def test_impossible_configurations_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must"):
        DataConfig(**wrong)
