"""The networks that are compared, against formulas that share no code with them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from cbn_deploy.checkpoint import Checkpoint, load_checkpoint
from cbn_deploy.errors import CheckpointError
from cbn_deploy.models import bn_twin
from cbn_deploy.norm import FrozenCompoundBatchNorm2d
from export.bench.networks import bench_images, cbn_network, efficient_in_torch, paper_formula, twin_network


@pytest.fixture(scope="module")
def checkpoint(checkpoint_path) -> Checkpoint:
    return load_checkpoint(checkpoint_path)


@pytest.fixture(scope="module")
def images(checkpoint) -> np.ndarray:
    return bench_images(checkpoint)[0][:8]


def double_logits(module: nn.Module, images: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return module.double()(torch.from_numpy(images).double()).numpy()


def test_the_expected_logits_are_the_papers_formula_in_float64(checkpoint, images):
    network = cbn_network(checkpoint, images)
    largest = np.abs(network.expected).max(axis=1)
    paper = double_logits(paper_formula(network.module), images)
    # The frozen tables hold the compound path's normaliser, rounded to float32 once; the checkpoint's do not.
    np.testing.assert_allclose(network.expected, paper, rtol=0, atol=1e-6 * largest.max())
    np.testing.assert_allclose(paper, double_logits(efficient_in_torch(network.module), images), rtol=1e-9)
    assert (network.limits >= 1e-4 * np.maximum(1, largest) * (1 - 1e-12)).all()
    assert (network.limits <= 1e-3 * np.maximum(1, largest)).all()


def test_the_variants_really_replace_every_layer_and_leave_the_original_alone(checkpoint, images):
    module = cbn_network(checkpoint, images).module

    def direct_layers(model: nn.Module) -> int:
        held = {id(child.tables) for child in model.modules() if hasattr(child, "formula")}
        return sum(isinstance(m, FrozenCompoundBatchNorm2d) and id(m) not in held for m in model.modules())

    assert direct_layers(module) == 19  # ResNet-20: the stem and two in each of nine blocks
    assert direct_layers(paper_formula(module)) == direct_layers(efficient_in_torch(module)) == 0
    assert direct_layers(module) == 19


def test_the_twin_is_the_same_network_with_batch_norms_that_do_something(checkpoint, images):
    state = torch.get_rng_state()
    twin = twin_network(checkpoint, images)
    assert torch.equal(torch.get_rng_state(), state)
    assert twin.description.architecture == bn_twin(checkpoint.architecture).name
    assert twin.description.components == 0
    layers = [module for module in twin.module.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(layers) == 19
    for layer in layers:
        assert layer.running_mean.abs().min() > 0
        assert ((layer.running_var - 1).abs() > 1e-3).any()
        assert layer.weight.std() > 0.1
        assert layer.bias.std() > 0.05
    convolutions = [
        sum(isinstance(module, nn.Conv2d) for module in network.module.modules())
        for network in (twin, cbn_network(checkpoint, images))
    ]
    assert convolutions[0] == convolutions[1] == 19
    assert np.isfinite(twin.expected).all()
    assert twin.expected.std() > 0.1
    np.testing.assert_array_equal(twin.expected, twin_network(checkpoint, images).expected)


def test_images_are_the_checkpoints_samples_spread_evenly(checkpoint):
    images, origin = bench_images(checkpoint)
    assert images.shape == (64, 3, 32, 32)
    assert images.dtype == np.float32
    assert origin == "64 sample images of the checkpoint"
    samples = checkpoint.sample_images
    assert samples is not None
    few = dataclasses.replace(checkpoint, sample_images=samples[:5])
    np.testing.assert_array_equal(bench_images(few)[0], images[:5])
    many = dataclasses.replace(checkpoint, sample_images=torch.cat([samples, samples, samples[:1]]))
    spread, _ = bench_images(many)
    assert len(spread) == 64
    np.testing.assert_array_equal(spread[[0, -1]], images[[0, 0]])


@pytest.mark.parametrize("samples", [None, torch.zeros(0, 32, 32, 3, dtype=torch.uint8)])
def test_without_samples_random_pixels_stand_in_and_it_is_said(checkpoint, samples):
    images, origin = bench_images(dataclasses.replace(checkpoint, sample_images=samples))
    assert images.shape == (64, 3, 32, 32)
    assert "random pixels" in origin


def test_a_batch_norm_checkpoint_is_refused(checkpoint, images):
    plain = dataclasses.replace(checkpoint, architecture=bn_twin(checkpoint.architecture))
    with pytest.raises(CheckpointError, match="plain batch-norm model"):
        cbn_network(plain, images)
