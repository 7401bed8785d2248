from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from cbn_deploy.norm import CompoundBatchNorm2d, NormConfig, mixture_health
from cbn_deploy.training.metrics import MixtureTally
from tests.reference.tolerances import tolerance


def test_the_tally_of_posteriors_is_the_layers_own_health():
    torch.manual_seed(0)
    layer = CompoundBatchNorm2d(6, NormConfig(components=3))
    model = nn.Sequential(nn.Conv2d(3, 6, 3), layer)
    batches = [torch.randn(4, 3, 9, 9), torch.randn(3, 3, 9, 9)]
    for batch in batches:
        model(batch)
    model.eval()
    tally = MixtureTally()
    with torch.no_grad():
        for batch in batches:
            tally.add({"1": layer.posterior(model[0](batch)).numpy()})
    actual, expected = tally.health()["1"], mixture_health(model, batches)["1"]
    np.testing.assert_allclose(actual.occupancy, expected.occupancy, **tolerance("float32 layer"))
    np.testing.assert_allclose(actual.pixel_entropy, expected.pixel_entropy, **tolerance("float32 layer"))
    assert actual.dead == expected.dead


def test_known_posteriors():
    tally = MixtureTally()
    one_hot = np.zeros((1, 4, 2, 2), np.float32)
    one_hot[:, 0] = 1.0
    tally.add({"even": np.full((2, 4, 3, 3), 0.25, np.float32), "one": np.ones((2, 1, 3, 3), np.float32)})
    tally.add({"even": np.full((1, 4, 3, 3), 0.25, np.float32), "hot": one_hot})
    health = tally.health()
    assert list(health) == ["even", "one", "hot"]
    assert health["even"].occupancy == (0.25,) * 4
    assert health["even"].pixel_entropy == pytest.approx(1.0)
    assert (health["hot"].occupancy, health["hot"].pixel_entropy, health["hot"].dead) == ((1.0, 0.0, 0.0, 0.0), 0.0, 3)
    assert (health["one"].pixel_entropy, health["one"].dead) == (0.0, 0)
    assert MixtureTally().health() == {}
