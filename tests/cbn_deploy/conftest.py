"""One finished training run, for the tests of training and of its command lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from cbn_deploy.training import RECIPES, Recipe, apply_settings, train
from tests.tiny_runs import SETTINGS, one_thread, write_photos


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of three unequal classes, in the layout of the ``image-folder`` recipe."""
    folder = tmp_path_factory.mktemp("photos")
    write_photos(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_recipe() -> Recipe:
    """Dual-path CBN, three epochs of four steps."""
    return apply_settings(RECIPES["image-folder"], SETTINGS)


@pytest.fixture(scope="session")
def finished_run(photos: Path, tiny_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a complete run of ``tiny_recipe``. Not to be written to."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    with one_thread():
        train(tiny_recipe, photos, out)
    return out
