"""A dual-path layer is normalised after training by what the compound path was normalised by in training."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cbn_deploy.norm import CompoundBatchNorm2d, DualPathBatchNorm2d, NormConfig, freeze, split_path
from tests.reference import mixture_float64 as reference
from tests.reference.tolerances import tolerance

CLASS_GROUPS = torch.tensor([0, 0, 1, 2])
SHAPE = (6, 5, 4, 3)
MOMENTUM = 0.3


def dual(**config: object) -> DualPathBatchNorm2d:
    """A float64 layer of 5 channels and 3 components with tables that are not the initial ones."""
    torch.manual_seed(0)
    layer = DualPathBatchNorm2d(5, CLASS_GROUPS, NormConfig(components=3, momentum=MOMENTUM, **config)).double()
    with torch.no_grad():
        layer.weight.uniform_(0.5, 1.5)
        layer.bias.normal_()
    return layer


def batches(count: int) -> list[torch.Tensor]:
    """Images whose mean and spread differ from batch to batch."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(SHAPE, dtype=torch.float64, generator=generator) * (1 + i / 3) + i / 2 for i in range(count)]


LABELS = torch.tensor([0, 1, 2, 3, 3, 0])


def trained(layer: DualPathBatchNorm2d, xs: list[torch.Tensor]) -> DualPathBatchNorm2d:
    """Each batch through both paths, as a step of dual-path learning does."""
    for x in xs:
        layer(x)
        with split_path(layer, LABELS):
            layer(x)
    return layer


def arrays(layer: DualPathBatchNorm2d) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    tau, mean, var = (table.numpy() for table in layer.running)
    return tau, mean, var


def test_inference_reads_moving_averages_of_the_compound_paths_own_moments() -> None:
    """Eq. (8) under the shared statistics, Eq. (7) and (16) under the compound path's: numpy in float64."""
    layer = dual()
    eps, s = layer.config.eps, layer.density_scale
    mean, var = layer.running_mean.numpy().copy(), layer.running_var.numpy().copy()
    for x in batches(3):
        points = reference.pixels(x.numpy())
        mass, batch_mean, batch_var = reference.m_step(points, reference.posterior(points, *arrays(layer), eps, s))
        unbiased = batch_var * (mass / (mass - 1))[:, None]
        mean, var = (
            reference.ema(mean, batch_mean, 1 - MOMENTUM),
            reference.ema(var, unbiased, 1 - MOMENTUM),
        )
        trained(layer, [x])
    layer.eval()
    x = batches(4)[-1]
    points = reference.pixels(x.numpy())
    w = reference.posterior(points, *arrays(layer), eps, s)
    scale, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    expected = reference.unpixels(reference.compound(points, w, mean, var, scale, bias, eps), SHAPE)
    np.testing.assert_allclose(layer(x).detach().numpy(), expected, **tolerance("float64"))
    shared = reference.unpixels(reference.compound(points, w, *arrays(layer)[1:], scale, bias, eps), SHAPE)
    assert np.abs(expected - shared).max() > 0.05  # the difference that this normaliser is for


def test_the_frozen_layer_computes_the_same() -> None:
    layer = trained(dual(), batches(3)).eval()
    x = batches(4)[-1]
    torch.testing.assert_close(freeze(layer)(x), layer(x), **tolerance("float64"))


def test_shared_normalizer_reads_the_densitys_statistics() -> None:
    layer = trained(dual(normalizer="shared"), batches(3)).eval()
    assert not [name for name in layer.state_dict() if name.startswith("compound_")]
    scale, bias = layer.inference_affine()
    assert torch.equal(scale, layer.weight)
    assert torch.equal(bias, layer.bias)


@pytest.mark.parametrize("initialization", ["normal_means", "first_batch"])
def test_without_a_split_path_both_normalizers_are_one(initialization: str) -> None:
    layer = dual(initialization=initialization)
    for x in batches(3):
        layer(x)
    scale, bias = layer.inference_affine()
    torch.testing.assert_close(scale, layer.weight, **tolerance("float64"))
    torch.testing.assert_close(bias, layer.bias, **tolerance("float64"))


def test_a_checkpoint_from_before_is_read_as_what_it_was() -> None:
    old = trained(dual(normalizer="shared"), batches(3)).eval()
    layer = dual().eval()
    layer.load_state_dict(old.state_dict())
    x = batches(4)[-1]
    torch.testing.assert_close(layer(x), old(x), **tolerance("float64"))


@pytest.mark.parametrize(
    "config", [{"statistics": "algorithm2"}, {"statistics": "update_then_read"}, {"split_groups": 3}]
)
def test_readings_that_normalise_by_running_statistics_have_no_other(config: dict[str, object]) -> None:
    assert dual(**config).compound_mean is None


def test_a_layer_without_split_path_has_no_second_normalizer() -> None:
    assert "compound_mean" not in CompoundBatchNorm2d(5).state_dict()


def test_gradients_reach_the_tables_in_evaluation_mode() -> None:
    layer = trained(dual(), batches(2)).eval()
    layer(batches(3)[-1]).square().sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.abs().min() > 0
