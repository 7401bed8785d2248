"""ResNet-18 to ResNet-152: published parameter counts and names, shapes, the way from a batch-norm file to CBN."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cbn_deploy.models import ArchitectureConfig, bn_twin, create_model
from cbn_deploy.models.resnet_imagenet import Bottleneck, ImageNetResNet, ProjectedBasicBlock
from cbn_deploy.norm import NormConfig, class_groups, convert_batchnorm, freeze, split_path
from tests.reference.tolerances import tolerance

BATCH_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def torchvision_names(blocks: tuple[int, ...], convolutions: int) -> list[str]:
    """The keys of torchvision's ResNet state dicts, in its order, written down from its published files."""
    names = ["conv1.weight", *(f"bn1.{entry}" for entry in BATCH_NORM)]
    for stage, count in enumerate(blocks, start=1):
        for block in range(count):
            prefix = f"layer{stage}.{block}"
            for number in range(1, convolutions + 1):
                names.append(f"{prefix}.conv{number}.weight")
                names += [f"{prefix}.bn{number}.{entry}" for entry in BATCH_NORM]
            if block == 0 and (convolutions == 3 or stage > 1):
                names.append(f"{prefix}.downsample.0.weight")
                names += [f"{prefix}.downsample.1.{entry}" for entry in BATCH_NORM]
    return [*names, "fc.weight", "fc.bias"]


@pytest.mark.parametrize(
    ("name", "blocks", "convolutions", "parameters"),
    [
        ("resnet18-bn", (2, 2, 2, 2), 2, 11_689_512),
        ("resnet34-bn", (3, 4, 6, 3), 2, 21_797_672),
        ("resnet50-bn", (3, 4, 6, 3), 3, 25_557_032),
        ("resnet101-bn", (3, 4, 23, 3), 3, 44_549_160),
        ("resnet152-bn", (3, 8, 36, 3), 3, 60_192_808),
    ],
)
def test_parameters_are_those_of_the_published_networks(
    name: str, blocks: tuple[int, ...], convolutions: int, parameters: int
) -> None:
    with torch.device("meta"):
        model = create_model(ArchitectureConfig(name=name, num_classes=1000))
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert list(model.state_dict()) == torchvision_names(blocks, convolutions)


def test_parameters_with_a_mixture() -> None:
    model = create_model(ArchitectureConfig(name="resnet50", num_classes=1000, norm=NormConfig(components=4)))
    scales_and_biases = 2 * 26_560  # the channels of all 53 normalisation layers
    assert sum(p.numel() for p in model.parameters()) == 25_557_032 + 3 * scales_and_biases


def test_the_stride_is_on_the_3x3_convolution() -> None:
    block = Bottleneck(256, 128, 2, nn.BatchNorm2d)
    assert (block.conv1.stride, block.conv2.stride, block.conv3.stride) == ((1, 1), (2, 2), (1, 1))
    assert isinstance(Bottleneck(256, 64, 1, nn.BatchNorm2d).downsample, nn.Identity)


@pytest.mark.parametrize(("name", "expansion"), [("resnet18-bn", 1), ("resnet50-bn", 4)])
def test_stages_halve_the_size_and_double_the_channels(name: str, expansion: int) -> None:
    model = create_model(ArchitectureConfig(name=name, num_classes=10)).eval()
    shapes: list[tuple[int, ...]] = []
    for stage in (model.bn1, model.layer1, model.layer2, model.layer3, model.layer4):
        stage.register_forward_hook(lambda _m, _i, output: shapes.append(tuple(output.shape[1:])))
    with torch.no_grad():
        model(torch.randn(1, 3, 64, 96))
    stages = [(64, 16, 24), (128, 8, 12), (256, 4, 6), (512, 2, 3)]
    assert shapes == [(64, 32, 48), *((expansion * channels, *size) for channels, *size in stages)]


@pytest.mark.parametrize("block", [ProjectedBasicBlock, Bottleneck])
@pytest.mark.parametrize("size", [(16, 16), (33, 64)])
def test_any_input_size_on_both_paths(
    size: tuple[int, int], block: type[ProjectedBasicBlock] | type[Bottleneck]
) -> None:
    norm = NormConfig(components=2)
    model = ImageNetResNet(block, (1, 1, 1, 1), 7, lambda channels: _dual_path(channels, norm))
    x = torch.randn(2, 3, *size)
    assert model(x).shape == (2, 7)
    with split_path(model, torch.tensor([0, 6])):
        assert model(x).shape == (2, 7)


def _dual_path(channels: int, norm: NormConfig) -> nn.Module:
    return convert_batchnorm(nn.BatchNorm2d(channels), norm, class_groups(7, norm.components))


@pytest.mark.parametrize(("name", "components"), [("resnet18", 3), ("resnet50", 1), ("resnet50", 3)])
def test_a_batch_norm_checkpoint_becomes_the_cbn_network(name: str, components: int) -> None:
    """Table 6's way: weights of a batch-norm ResNet -> the same function with M Gaussians -> a CBN checkpoint."""
    torch.manual_seed(0)
    norm = NormConfig(components=components)
    architecture = ArchitectureConfig(name=name, num_classes=7, norm=norm)
    source = create_model(bn_twin(architecture))
    with torch.no_grad():
        for _ in range(3):
            source(torch.randn(4, 3, 32, 32))
    source.eval()
    converted = convert_batchnorm(source, norm, class_groups(7, components))
    target = create_model(architecture)
    target.load_state_dict(converted.state_dict())
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected, found = source(x), target.eval()(x)
        frozen = freeze(target)(x)
    torch.testing.assert_close(found, expected, **tolerance("converted network"))
    torch.testing.assert_close(frozen, expected, **tolerance("converted network"))
