"""Freezing, converting, grouping, diagnostics, config."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from cbn_deploy.models import ArchitectureConfig, create_model
from cbn_deploy.norm import (
    CompoundBatchNorm2d,
    DualPathBatchNorm2d,
    FrozenCompoundBatchNorm2d,
    NormConfig,
    SplitBatchNorm2d,
    class_groups,
    compound_batch_norm_naive,
    convert_batchnorm,
    freeze,
    split_path,
)
from tests.reference.tolerances import tolerance


def trained_batch_norm_net() -> nn.Module:
    torch.manual_seed(0)
    net = create_model(ArchitectureConfig(name="resnet20-bn", num_classes=6))
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    for _ in range(3):
        net(torch.randn(8, 3, 16, 16))
    return net.eval()


def test_frozen_model_is_the_eval_model_without_its_split_path() -> None:
    torch.manual_seed(0)
    model = create_model(ArchitectureConfig(name="resnet20", num_classes=10, norm=NormConfig(split_affine="separate")))
    model(torch.randn(4, 3, 16, 16))
    frozen = freeze(model)
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(frozen(x), model.eval()(x), **tolerance("float32 layer"))
    assert not any("split" in name or "class_groups" in name for name in frozen.state_dict())
    assert sum(isinstance(m, FrozenCompoundBatchNorm2d) for m in frozen.modules()) == 19
    with pytest.raises(ValueError, match="no split"), split_path(frozen, torch.tensor([0, 1])):
        pass


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(2, 7, 5, 3), (3, 7), (1, 7, 1, 1), (2, 7, 2, 3, 2)])
def test_the_op_agrees_with_the_papers_formula_in_float64(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    torch.manual_seed(3)
    layer = CompoundBatchNorm2d(7, NormConfig(components=4, density_scale="joint"))
    layer(torch.randn(6, 7, 4, 4))
    frozen = freeze(layer)
    x = torch.randn(shape).to(dtype)
    y = frozen(x)
    tables = [t.double() for t in (frozen.tau, frozen.mean, frozen.var, frozen.scale, frozen.bias)]
    expected = compound_batch_norm_naive(x.double(), *tables, frozen.epsilon, frozen.density_scale)
    assert y.dtype == dtype
    row = {torch.float16: "layer float16", torch.bfloat16: "layer bfloat16"}.get(dtype, "float32 layer")
    torch.testing.assert_close(y.double(), expected, **tolerance(row))


def test_torch_operators_are_well_formed() -> None:
    """torch's own opcheck: schema, fake tensors, dispatch."""
    torch.manual_seed(0)
    frozen = freeze(CompoundBatchNorm2d(3, NormConfig(components=2)))
    tables = (frozen.tau, frozen.mean, frozen.var, frozen.scale, frozen.bias, 1e-5, 0.5)
    for operator in (torch.ops.cbn.compound_batch_norm, torch.ops.cbn.compound_batch_norm_posterior):
        torch.library.opcheck(
            operator,
            (torch.randn(2, 3, 4, 4), *tables),
            test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"),
        )


def test_a_component_with_zero_prior_claims_nothing() -> None:
    frozen = FrozenCompoundBatchNorm2d(
        torch.tensor([0.0, 1.0]), torch.randn(2, 3), torch.ones(2, 3), torch.ones(2, 3), torch.zeros(2, 3), 1e-5, 1.0
    )
    x = torch.randn(2, 3, 4, 4)
    _, posterior = torch.ops.cbn.compound_batch_norm_posterior(
        x, frozen.tau, frozen.mean, frozen.var, frozen.scale, frozen.bias, 1e-5, 1.0
    )
    assert torch.equal(posterior[:, 0], torch.zeros(2, 4, 4))
    assert torch.isfinite(frozen(x)).all()


def test_split_only_layers_cannot_be_frozen() -> None:
    with pytest.raises(ValueError, match="needs labels"):
        freeze(nn.Sequential(SplitBatchNorm2d(3, class_groups(4, 4))))


@pytest.mark.parametrize("components", [1, 4])
@pytest.mark.parametrize("symmetry_break", [0.0, 0.1, 1.0])
def test_converted_model_computes_the_same_function(components: int, symmetry_break: float) -> None:
    net = trained_batch_norm_net()
    converted = convert_batchnorm(net, NormConfig(components=components), symmetry_break=symmetry_break)
    x = torch.randn(4, 3, 16, 16)
    torch.testing.assert_close(converted(x), net(x), **tolerance("converted network"))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in converted.modules())
    assert any(isinstance(m, nn.BatchNorm2d) for m in net.modules()), "the source must stay as it was"


def test_converted_model_has_the_broken_symmetry_and_a_split_path() -> None:
    net = trained_batch_norm_net()
    converted = convert_batchnorm(net, NormConfig(components=3), class_groups(6, 3), symmetry_break=0.2)
    layer = converted.get_submodule("layer1.0.bn1")
    source = net.get_submodule("layer1.0.bn1")
    spread = ((layer.running_mean - source.running_mean) / (source.running_var + source.eps).sqrt()).std().item()
    assert 0.1 < spread < 0.3
    with split_path(converted, torch.tensor([0, 5])):
        assert converted(torch.randn(2, 3, 16, 16)).shape == (2, 6)
    with pytest.raises(ValueError, match="no BatchNorm2d"):
        convert_batchnorm(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="running statistics"):
        convert_batchnorm(nn.BatchNorm2d(2, track_running_stats=False))


class BatchNormAct2d(nn.BatchNorm2d):
    """As timm's layer of that name: normalise, drop, activate."""

    def __init__(self, channels: int, act: nn.Module) -> None:
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), act

    def forward(self, x: Tensor) -> Tensor:
        activated: Tensor = self.act(self.drop(super().forward(x)))
        return activated


def test_a_batch_norm_with_its_activation_is_converted() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        BatchNormAct2d(4, nn.SiLU(inplace=True)),
        BatchNormAct2d(4, nn.Identity()),
        nn.BatchNorm2d(4),
    )
    for _ in range(3):
        net(torch.randn(8, 3, 9, 9))
    converted = convert_batchnorm(net, NormConfig(components=2), class_groups(6, 2))
    x = torch.randn(4, 3, 9, 9)
    torch.testing.assert_close(converted.eval()(x), net.eval()(x), **tolerance("converted network"))
    assert sum(isinstance(module, DualPathBatchNorm2d) for module in converted.modules()) == 3
    assert not any(isinstance(module, nn.BatchNorm2d) for module in converted.modules())
    # Training: the activation works in place on what the layer has given.
    converted.train()(x).square().sum().backward()
    assert all(parameter.grad is not None for parameter in converted.parameters())
    torch.testing.assert_close(freeze(converted)(x), converted.eval()(x), **tolerance("float32 layer"))


def test_a_batch_norm_in_two_places_stays_one() -> None:
    shared = nn.BatchNorm2d(3)
    net = nn.ModuleDict({"a": nn.Sequential(shared), "b": nn.Sequential(nn.Conv2d(3, 3, 1), shared)})
    converted = convert_batchnorm(net)
    assert isinstance(converted["a"][0], CompoundBatchNorm2d)
    assert converted["a"][0] is converted["b"][1]
    frozen = freeze(converted)
    assert isinstance(frozen["a"][0], FrozenCompoundBatchNorm2d)
    assert frozen["a"][0] is frozen["b"][1]


def test_other_batch_norms_are_not_passed_over() -> None:
    class Centred(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return x - x.mean()

    with pytest.raises(ValueError, match="1 is a Centred, which has a forward of its own"):
        convert_batchnorm(nn.Sequential(nn.BatchNorm2d(3), Centred(3)))

    class ActivatesFirst(BatchNormAct2d):
        def forward(self, x: Tensor) -> Tensor:
            normalized: Tensor = nn.BatchNorm2d.forward(self, self.act(x))
            return normalized

    with pytest.raises(ValueError, match="0 is a ActivatesFirst, which has a forward of its own"):
        convert_batchnorm(nn.Sequential(ActivatesFirst(3, nn.ReLU())))
    with pytest.raises(ValueError, match="1 is a SyncBatchNorm; convert the network before"):
        convert_batchnorm(nn.Sequential(nn.BatchNorm2d(3), nn.SyncBatchNorm(3)))
    subclass = type("Named", (nn.BatchNorm2d,), {})
    assert isinstance(convert_batchnorm(subclass(3)), CompoundBatchNorm2d)


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("contiguous", [0, 0, 0, 1, 1, 2, 2, 2, 3, 3]),
        ("strided", [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]),
        ("frequency", [3, 3, 2, 2, 2, 1, 1, 0, 0, 0]),
    ],
)
def test_class_groups(policy: str, expected: list[int]) -> None:
    assert class_groups(10, 4, policy, class_counts=range(10)).tolist() == expected


def test_class_groups_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match="training count"):
        class_groups(4, 2, "frequency")
    with pytest.raises(ValueError, match="policy"):
        class_groups(4, 2, "alphabetical")
    with pytest.raises(ValueError, match="at least 1"):
        class_groups(0, 2)
    assert class_groups(2, 4).tolist() == [0, 2]


def test_density_factor() -> None:
    assert NormConfig(density_scale="joint").density_factor(64) == 1.0
    assert NormConfig().density_factor(64) == pytest.approx(1 / math.sqrt(64))
    assert NormConfig(density_scale="mean_channels").density_factor(64) == pytest.approx(1 / 64)
    assert NormConfig(density_scale=0.3).density_factor(64) == 0.3


@pytest.mark.parametrize(
    "bad",
    [
        {"components": 0},
        {"eps": 0.0},
        {"momentum": 0.0},
        {"momentum": 1.5},
        {"statistics": "bayes"},
        {"density_scale": "cube"},
        {"density_scale": -1.0},
        {"initialization": "zeros"},
        {"split_affine": "both"},
        {"class_grouping": "random"},
    ],
)
def test_config_refuses_impossible_values(bad: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        NormConfig(**bad)


def test_config_round_trip() -> None:
    config = NormConfig(components=2, density_scale=0.5, class_grouping="strided")
    assert NormConfig.from_dict(config.to_dict()) == config
