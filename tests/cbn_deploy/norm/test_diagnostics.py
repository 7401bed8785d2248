from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn

from cbn_deploy.norm import CompoundBatchNorm2d, MixtureTally, NormConfig, mixture_health
from tests.reference.tolerances import tolerance


def test_the_health_of_a_layer_is_that_of_its_posteriors() -> None:
    torch.manual_seed(0)
    layer = CompoundBatchNorm2d(6, NormConfig(components=3))
    model = nn.Sequential(nn.Conv2d(3, 6, 3), layer)
    batches = [torch.randn(4, 3, 9, 9), torch.randn(3, 3, 9, 9)]
    for batch in batches:
        model(batch)
    model.eval()
    with torch.no_grad():
        posteriors = np.concatenate([layer.posterior(model[0](batch)).double().numpy() for batch in batches])
    pixels = posteriors.transpose(0, 2, 3, 1).reshape(-1, 3)
    health = mixture_health(model, batches)["1"]
    np.testing.assert_allclose(health.occupancy, pixels.mean(axis=0), **tolerance("float32 layer"))
    entropy = scipy.stats.entropy(pixels, base=3, axis=1).mean()
    np.testing.assert_allclose(health.pixel_entropy, entropy, **tolerance("float32 layer"))
    assert health.dead == int((pixels.mean(axis=0) < 1e-3).sum())


def test_known_posteriors() -> None:
    even, hot, one = MixtureTally(), MixtureTally(), MixtureTally()
    one_hot = torch.zeros(1, 4, 2, 2)
    one_hot[:, 0] = 1.0
    even.add(torch.full((2, 4, 3, 3), 0.25))
    even.add(torch.full((1, 4, 3, 3), 0.25))
    hot.add(one_hot)
    one.add(torch.ones(2, 1, 3, 3))
    assert even.pixels == 27
    assert even.health().occupancy == (0.25,) * 4
    assert even.health().pixel_entropy == pytest.approx(1.0)
    assert hot.health().to_dict() == {"occupancy": [1.0, 0.0, 0.0, 0.0], "pixel_entropy": 0.0, "dead": 3}
    assert (one.health().pixel_entropy, one.health().dead) == (0.0, 0)


def test_posteriors_without_pixels_of_their_own_count_once_an_image() -> None:
    tally = MixtureTally()
    tally.add(torch.tensor([[0.5, 0.5], [1.0, 0.0]]))
    assert tally.health().occupancy == (0.75, 0.25)
    assert tally.health().pixel_entropy == pytest.approx(0.5)


def test_mixture_health_tells_soft_from_one_hot_from_disguised() -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 4, 6, 6) + 4.0 * torch.randn(8, 1, 1, 1).sign()
    layer = CompoundBatchNorm2d(4, NormConfig(components=2, density_scale="joint"))
    layer.running_mean = torch.tensor([[-4.0] * 4, [4.0] * 4])
    one_hot = mixture_health(nn.Sequential(layer), [x])["0"]
    assert one_hot.pixel_entropy < 0.05
    assert one_hot.dead == 0
    assert sum(one_hot.occupancy) == pytest.approx(1.0)
    layer.running_mean = torch.zeros(2, 4)
    disguised = mixture_health(nn.Sequential(layer), [x])["0"]
    assert disguised.pixel_entropy == pytest.approx(1.0)
    layer.running_mean = torch.tensor([[0.0] * 4, [900.0] * 4])
    assert mixture_health(nn.Sequential(layer), [x])["0"].dead == 1
    assert layer.training, "the training flag is restored"
    assert mixture_health(nn.Linear(2, 2), [torch.zeros(1, 2)]) == {}
