from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from cbn_deploy.models import ArchitectureConfig, bn_twin, create_model
from cbn_deploy.models.classifier import CosineClassifier
from cbn_deploy.norm import NormConfig
from tests.reference.tolerances import tolerance

COSINE = ArchitectureConfig(name="resnet8", num_classes=5, norm=NormConfig(), cosine_scale=30.0)


def test_logits_are_scaled_cosines():
    layer = CosineClassifier(7, 3, scale=12.0).double()
    features = torch.randn(4, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    f, w = features.numpy(), layer.weight.detach().numpy()
    expected = 12.0 * (f @ w.T) / np.outer(np.linalg.norm(f, axis=1), np.linalg.norm(w, axis=1))
    np.testing.assert_allclose(layer(features).detach().numpy(), expected, **tolerance("float64"))
    assert layer.bias is None


def test_lengths_do_not_matter_and_zeros_give_zeros():
    layer = CosineClassifier(7, 3, scale=12.0)
    features = torch.randn(4, 7, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(layer(100 * features), layer(features))
    assert torch.equal(layer(torch.zeros(1, 7)), torch.zeros(1, 3))


def test_a_network_with_a_cosine_classifier_is_described_by_its_architecture():
    assert ArchitectureConfig.from_dict(COSINE.to_dict()) == COSINE
    plain = COSINE.to_dict()
    del plain["cosine_scale"]  # as written before there were any
    assert ArchitectureConfig.from_dict(plain).cosine_scale is None
    for architecture in (COSINE, bn_twin(COSINE)):
        model = create_model(architecture).eval()
        assert "fc.bias" not in model.state_dict()
        logits = model(torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)))
        assert logits.abs().max() <= 30.0
    assert create_model(ArchitectureConfig(name="resnet50-bn", num_classes=5, cosine_scale=3.0)).state_dict()[
        "fc.weight"
    ].shape == (5, 2048)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf])
def test_an_impossible_scale_is_refused(scale):
    with pytest.raises(ValueError, match="cosine_scale"):
        ArchitectureConfig(name="resnet8-bn", num_classes=5, cosine_scale=scale)
