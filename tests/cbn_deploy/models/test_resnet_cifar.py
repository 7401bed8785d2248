"""Parameter counts of the literature, shapes, the option-A shortcut, and the registry's errors."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cbn_deploy.models import MODEL_NAMES, ArchitectureConfig, bn_twin, create_model
from cbn_deploy.models.resnet_cifar import CifarResNet, PaddedShortcut
from cbn_deploy.norm import NormConfig, split_path


def parameters(name: str, norm: NormConfig | None) -> int:
    model = create_model(ArchitectureConfig(name=name, num_classes=10, norm=norm))
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "million"),
    [("resnet20", 0.27), ("resnet32", 0.46), ("resnet44", 0.66), ("resnet56", 0.85), ("resnet110", 1.73)],
)
def test_parameter_counts_of_he_et_al(name: str, million: float) -> None:
    """Table 6 of He et al. 2016, in millions, two digits."""
    assert round(parameters(name + "-bn", None) / 1e6, 2) == million


def test_parameter_counts_with_a_mixture() -> None:
    assert parameters("resnet32-bn", None) == 464_154
    assert parameters("resnet32", NormConfig(components=4)) == 470_970
    assert parameters("resnet32", NormConfig(components=1)) == 464_154


@pytest.mark.parametrize("size", [(32, 32), (28, 20), (16, 48)])
def test_any_input_size(size: tuple[int, int]) -> None:
    model = create_model(ArchitectureConfig(name="resnet20", num_classes=7, norm=NormConfig(components=2)))
    labels = torch.tensor([0, 6])
    assert model(torch.randn(2, 3, *size)).shape == (2, 7)
    with split_path(model, labels):
        assert model(torch.randn(2, 3, *size)).shape == (2, 7)


def test_shortcut_subsamples_and_pads_channels_on_both_sides() -> None:
    x = torch.randn(1, 4, 6, 6)
    y = PaddedShortcut(4, 8, 2)(x)
    assert torch.equal(y[:, 2:6], x[:, :, ::2, ::2])
    assert not y[:, :2].any()
    assert not y[:, 6:].any()


def test_stages_halve_the_size_and_double_the_channels() -> None:
    model = create_model(ArchitectureConfig(name="resnet20-bn", num_classes=10)).eval()
    shapes: list[tuple[int, ...]] = []
    for stage in (model.layer1, model.layer2, model.layer3):
        stage.register_forward_hook(lambda _m, _i, output: shapes.append(tuple(output.shape[1:])))
    model(torch.randn(1, 3, 32, 32))
    assert shapes == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]
    assert [len(s) for s in (model.layer1, model.layer2, model.layer3)] == [3, 3, 3]


def test_registry_says_what_it_knows() -> None:
    with pytest.raises(ValueError, match="resnet32-bn"):
        ArchitectureConfig(name="resnet33", num_classes=10, norm=NormConfig())
    with pytest.raises(ValueError, match="takes no norm"):
        ArchitectureConfig(name="resnet32-bn", num_classes=10, norm=NormConfig())
    with pytest.raises(ValueError, match="needs a norm"):
        ArchitectureConfig(name="resnet32", num_classes=10)
    with pytest.raises(ValueError, match="num_classes"):
        ArchitectureConfig(name="resnet32", num_classes=1, norm=NormConfig())
    with pytest.raises(ValueError, match="6 n"):
        CifarResNet(21, 10, nn.BatchNorm2d)


def test_twin_and_round_trip() -> None:
    for name in MODEL_NAMES:
        norm = None if name.endswith("-bn") else NormConfig(components=3)
        config = ArchitectureConfig(name=name, num_classes=5, norm=norm)
        assert ArchitectureConfig.from_dict(config.to_dict()) == config
        assert bn_twin(config).name == name.removesuffix("-bn") + "-bn"
