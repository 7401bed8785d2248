"""What an exported file says about the images that its model knows, against torch on the same images."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from cbn_deploy.checkpoint import load_checkpoint, load_model
from cbn_deploy.runtime import ModelDescription
from cbn_deploy.runtime.description import ENERGY_LEVELS
from cbn_deploy.runtime.factory import open_session
from cbn_deploy.runtime.preprocessing import normalize
from export import ExportOptions, export_checkpoint
from export.familiarity import add_familiarity
from tests.reference.tolerances import tolerance


@pytest.fixture(scope="module")
def exported(checkpoint_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("familiar") / "model.onnx"
    return export_checkpoint(checkpoint_path, path, ExportOptions(with_posterior=True, inputs=32)).path


def test_energies_and_occupancy_of_the_sample_images(exported: Path, checkpoint_path: Path) -> None:
    samples = load_checkpoint(checkpoint_path).sample_images
    assert samples is not None
    with open_session(exported, threads=1) as session:
        description = session.description
        prediction = session.run(normalize(samples.numpy(), description.preprocessing))
    energies = -torch.logsumexp(torch.from_numpy(prediction.logits).double(), 1)
    predicted = prediction.logits.argmax(1)
    assert "all" in description.energy_quantiles
    for group, quantiles in description.energy_quantiles.items():
        members = [group in ("all", description.shot_groups[index]) for index in predicted]
        assert sum(members) >= 20
        levels = torch.tensor(ENERGY_LEVELS, dtype=torch.float64)
        assert_allclose(quantiles, torch.quantile(energies[members], levels).numpy(), **tolerance("runtime model"))
    assert len(description.occupancy) == len(prediction.posteriors) == 19
    for layer, posterior in prediction.posteriors.items():
        assert_allclose(description.occupancy[layer], posterior.mean((0, 2, 3)), **tolerance("served probability"))


def test_energies_that_a_checkpoint_brings_stay(checkpoint_path: Path) -> None:
    checkpoint = load_checkpoint(checkpoint_path)
    assert checkpoint.sample_images is not None
    own = {"all": tuple(float(level) for level in range(len(ENERGY_LEVELS)))}
    description = dataclasses.replace(checkpoint.description, energy_quantiles=own)
    measured = add_familiarity(description, load_model(checkpoint), checkpoint.sample_images.numpy()[:24])
    assert measured.energy_quantiles == own
    assert len(measured.occupancy) == 19


def test_without_images_nothing_is_claimed(checkpoint_path: Path) -> None:
    checkpoint = load_checkpoint(checkpoint_path)
    nothing = np.empty((0, 32, 32, 3), np.uint8)
    described: ModelDescription = add_familiarity(checkpoint.description, load_model(checkpoint), nothing)
    assert described == checkpoint.description
