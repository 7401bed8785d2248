"""Energies, their quantiles by shot group, and thresholds between them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from numpy.testing import assert_allclose

from cbn_deploy.runtime.description import ENERGY_LEVELS, ModelDescription
from cbn_deploy.runtime.familiarity import energies, energy_quantiles, energy_threshold
from tests.onnx_models import describe
from tests.reference.tolerances import tolerance

LEVELS = np.array(ENERGY_LEVELS)


def described(**quantiles: np.ndarray) -> ModelDescription:
    plain = {group: tuple(values.tolist()) for group, values in quantiles.items()}
    return dataclasses.replace(describe(), energy_quantiles=plain)


def test_energies_are_minus_the_log_of_the_sum_of_exponentials() -> None:
    z = np.random.default_rng(0).normal(0, 3, (5, 4, 7))
    assert_allclose(energies(z), -np.log(np.exp(z).sum(-1)), **tolerance("float64"))
    assert energies(np.array([1000.0, 1000.0])) == -1000 - np.log(2), "no overflow"


def test_quantiles_are_of_the_images_that_look_like_a_group() -> None:
    source = np.random.default_rng(0)
    logits = source.normal(0, 2, (200, 3))
    logits[:, 2] -= 3  # hardly ever first
    groups = ("many", "medium", "few")
    quantiles = energy_quantiles(logits, groups)
    assert set(quantiles) == {"all", "many", "medium"}, "too few look like the rare class"
    energy = -np.log(np.exp(logits).sum(-1))
    for index, group in enumerate(groups[:2]):
        members = np.sort(energy[logits.argmax(-1) == index])
        assert quantiles[group][0] == pytest.approx(members[0])
        assert quantiles[group][-1] == pytest.approx(members[-1])
        share_below = (members <= quantiles[group][ENERGY_LEVELS.index(0.9)]).mean()
        assert share_below == pytest.approx(0.9, abs=1 / len(members))
    assert energy_quantiles(logits[:19], groups) == {}


def test_a_threshold_rejects_the_share_that_was_asked_for() -> None:
    description = described(all=LEVELS * 10, few=LEVELS * 100)
    for rejected in (0.5, 0.1, 0.05, 0.01, 0.3):
        threshold = energy_threshold(description, predicted=2, rejected=rejected)
        assert threshold is not None
        assert (threshold.group, threshold.energy) == ("few", pytest.approx(100 * (1 - rejected)))
        pooled = energy_threshold(description, predicted=0, rejected=rejected)
        assert pooled is not None
        assert (pooled.group, pooled.energy) == ("all", pytest.approx(10 * (1 - rejected)))


def test_a_model_that_was_never_measured_has_no_threshold() -> None:
    assert energy_threshold(describe(), predicted=0, rejected=0.1) is None


@pytest.mark.parametrize("rejected", [0.0, -0.1, 0.51, 1.0, float("nan")])
def test_impossible_shares(rejected: float) -> None:
    with pytest.raises(ValueError, match="rejected must be"):
        energy_threshold(described(all=LEVELS), predicted=0, rejected=rejected)
