"""Model files for the sessions."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.onnx_models import colour_model, write_colour_model


@pytest.fixture(scope="session")
def colour_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_colour_model(tmp_path_factory.mktemp("colours") / "colours.onnx", colour_model(with_posterior=True))
