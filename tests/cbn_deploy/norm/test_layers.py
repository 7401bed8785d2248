"""The layers: readings of the statistics, gradients, both paths, bad numbers, the state-dict contract."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn

from cbn_deploy.norm import (
    CompoundBatchNorm2d,
    DualPathBatchNorm2d,
    NormConfig,
    SplitBatchNorm2d,
    class_groups,
    split_path,
)
from cbn_deploy.norm.statistics import TAU_FLOOR
from tests.reference import mixture_float64 as oracle
from tests.reference.tolerances import tolerance

READINGS = ("batch_em", "algorithm2", "update_then_read")


def layer(components: int = 3, features: int = 5, **config) -> CompoundBatchNorm2d:
    torch.manual_seed(1)
    made = CompoundBatchNorm2d(features, NormConfig(components=components, **config)).double()
    with torch.no_grad():
        made.weight.normal_(1.0, 0.2)
        made.bias.normal_(0.0, 0.2)
    return made


def dual(components: int = 2, features: int = 3, classes: int = 4, **config) -> DualPathBatchNorm2d:
    torch.manual_seed(2)
    return DualPathBatchNorm2d(
        features, class_groups(classes, components), NormConfig(components=components, **config)
    ).double()


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(0.5, 1.5, shape))


def tables(module: nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.detach().numpy().copy() for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("momentum", [0.1, 0.9])
def test_one_training_step_of_every_reading(reading: str, momentum: float) -> None:
    """Output and running statistics after one batch, recomputed in numpy from each reading's definition."""
    module = layer(statistics=reading, momentum=momentum, density_scale=0.5)
    t = tables(module)
    x = images(4, 5, 3, 3)
    y = module(x)

    flat = oracle.pixels(x.numpy())
    w = oracle.posterior(flat, t["running_tau"], t["running_mean"], t["running_var"], 1e-5, 0.5)
    mass, mean, var = oracle.m_step(flat, w)
    bessel = (mass / (mass - 1))[:, None] if reading == "batch_em" else 1.0
    new_mean = oracle.ema(t["running_mean"], mean, 1 - momentum)
    new_var = oracle.ema(t["running_var"], var * bessel, 1 - momentum)
    used = {
        "batch_em": (mean, var),
        "algorithm2": (t["running_mean"], t["running_var"]),
        "update_then_read": (new_mean, new_var),
    }[reading]
    expected = oracle.compound(flat, w, *used, t["weight"], t["bias"], 1e-5)
    assert_allclose(y.detach().numpy(), oracle.unpixels(expected, x.shape), **tolerance("float64"))
    assert_allclose(module.running_mean.numpy(), new_mean, **tolerance("float64"))
    assert_allclose(module.running_var.numpy(), new_var, **tolerance("float64"))
    new_tau = oracle.ema(t["running_tau"], mass / mass.sum(), 1 - momentum)
    # The priors are kept normalised: 1/3 in float32 three times is not quite one.
    assert_allclose(module.running_tau.numpy(), new_tau / new_tau.sum(), **tolerance("float64"))
    assert int(module.num_batches_tracked) == 1


def test_eval_mode_is_eq_16_under_the_running_statistics() -> None:
    module = layer().eval()
    t = tables(module)
    x = images(2, 5, 4, 3)
    flat = oracle.pixels(x.numpy())
    w = oracle.posterior(flat, t["running_tau"], t["running_mean"], t["running_var"], 1e-5, 5**-0.5)
    expected = oracle.compound(flat, w, t["running_mean"], t["running_var"], t["weight"], t["bias"], 1e-5)
    assert_allclose(module(x).detach().numpy(), oracle.unpixels(expected, x.shape), **tolerance("float64"))
    assert_allclose(oracle.pixels(module.posterior(x).numpy()), w, **tolerance("float64"))
    assert int(module.num_batches_tracked) == 0


@pytest.mark.parametrize("shape", [(6, 4, 5, 5), (7, 4, 1, 1), (9, 4), (2, 4, 3, 2, 2)])
def test_one_component_is_batch_norm(shape: tuple[int, ...]) -> None:
    """Outputs, gradients and running statistics of M = 1 are those of torch's batch norm, over several steps."""
    ours = CompoundBatchNorm2d(4, NormConfig(components=1))
    theirs = {2: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[len(shape)](4)
    for step in range(3):
        x = images(*shape, seed=step).float()
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        ya, yb = ours(a), theirs(b)
        ya.square().sum().backward()
        yb.square().sum().backward()
        torch.testing.assert_close(ya, yb, **tolerance("float32 batch norm"))
        torch.testing.assert_close(a.grad, b.grad, **tolerance("float32 batch norm gradient"))
    torch.testing.assert_close(ours.running_mean[0], theirs.running_mean, **tolerance("float32 batch norm"))
    torch.testing.assert_close(ours.running_var[0], theirs.running_var, **tolerance("float32 batch norm"))
    ours.eval(), theirs.eval()
    torch.testing.assert_close(ours(x), theirs(x), **tolerance("float32 batch norm"))


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("posterior_gradient", [True, False])
def test_gradients_of_two_forwards_before_one_backward(reading: str, posterior_gradient: bool) -> None:
    """gradcheck over compound(x1) then split(x2) on one layer: the statistics move in between, gradients stay right."""
    start = dual(statistics=reading, posterior_gradient=posterior_gradient)
    state = {name: value.clone() for name, value in start.state_dict().items()}
    labels = torch.tensor([0, 3, 1])

    def forwards(
        x1: torch.Tensor, x2: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, third: bool
    ) -> torch.Tensor:
        module = dual(statistics=reading, posterior_gradient=posterior_gradient)
        module.load_state_dict(state)
        del module.weight, module.bias
        module.weight, module.bias = weight, bias
        first = module(x1)
        with split_path(module, labels):
            second = module(x2)
        total = (first * second).sum() + 0.5 * first.sum()
        return total + module(x1).square().sum() if third else total

    inputs = [images(3, 3, 2, 2, seed=s).requires_grad_() for s in (0, 1)]
    inputs += [start.weight.detach().clone().requires_grad_(), start.bias.detach().clone().requires_grad_()]
    if posterior_gradient and reading == "batch_em":
        assert torch.autograd.gradcheck(partial(forwards, third=False), inputs)
    # A third forward reads running statistics that the first two moved, and those carry no gradient by design, which
    # finite differences cannot know; the gradient must equal that of
    # separate layers, each with the statistics of its moment.
    joint = torch.autograd.grad(forwards(*inputs, third=True), inputs)
    apart = torch.autograd.grad(_with_separate_layers(start, state, labels, *inputs), inputs)
    for a, b in zip(joint, apart, strict=True):
        assert torch.isfinite(a).all()
        torch.testing.assert_close(a, b)


def _with_separate_layers(start, state, labels, x1, x2, weight, bias) -> torch.Tensor:
    outputs = []
    for x, split in ((x1, False), (x2, True), (x1, False)):
        module = DualPathBatchNorm2d(3, start.class_groups, start.config).double()
        module.load_state_dict(state)
        del module.weight, module.bias
        module.weight, module.bias = weight, bias
        if split:
            with split_path(module, labels):
                outputs.append(module(x))
        else:
            outputs.append(module(x))
        state = {**state, **{k: v for k, v in module.state_dict().items() if k.startswith(("running", "num"))}}
    first, second, third = outputs
    return (first * second).sum() + 0.5 * first.sum() + third.square().sum()


def test_split_path_shares_statistics_and_leaves_no_trace() -> None:
    module = dual(components=3, features=4, classes=6)
    t = tables(module)
    labels, x = torch.tensor([0, 1, 5, 5]), images(4, 4, 3, 3)
    with split_path(module, labels):
        y = module(x)
    assert module.active_groups is None
    groups = np.array([0, 0, 2, 2])
    for g in (0, 2):
        member = oracle.pixels(x.numpy()[groups == g])
        mean, var = member.mean(0), member.var(0)
        expected = (member - mean) / np.sqrt(var + 1e-5)
        assert_allclose(oracle.pixels(y.detach().numpy()[groups == g]), expected, **tolerance("float64"))
        assert_allclose(
            module.running_mean[g].numpy(), oracle.ema(t["running_mean"][g], mean, 0.9), **tolerance("float64")
        )
    # Group 1 was empty: nothing of it moved; the priors belong to the compound path alone.
    assert_allclose(module.running_mean[1].numpy(), t["running_mean"][1], rtol=0)
    assert_allclose(module.running_var[1].numpy(), t["running_var"][1], rtol=0)
    assert_allclose(module.running_tau.numpy(), t["running_tau"], rtol=0)


def test_split_path_is_left_when_the_block_raises() -> None:
    module = nn.Sequential(dual())
    with pytest.raises(KeyError), split_path(module, torch.tensor([0])):
        raise KeyError
    assert module[0].active_groups is None


def test_separate_split_affine_is_used_by_the_split_path_only() -> None:
    module = dual(split_affine="separate").eval()
    x, labels = images(2, 3, 2, 2), torch.tensor([0, 3])
    compound = module(x)
    with torch.no_grad():
        module.split_bias += 7.0
    assert torch.equal(module(x), compound)
    with split_path(module, labels):
        shifted = module(x)
    with torch.no_grad():
        module.split_bias -= 7.0
    with split_path(module, labels):
        torch.testing.assert_close(shifted - 7.0, module(x))


def test_split_batch_norm_equals_the_split_path_of_the_dual_layer() -> None:
    groups = class_groups(4, 2)
    torch.manual_seed(0)
    split = SplitBatchNorm2d(3, groups, NormConfig(components=2)).double()
    both = dual()
    both.load_state_dict(split.state_dict())
    x, labels = images(4, 3, 2, 2), torch.tensor([0, 1, 2, 3])
    with split_path(split, labels), split_path(both, labels):
        assert torch.equal(split(x), both(x))
    with pytest.raises(RuntimeError, match="split_path"):
        split(x)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, 4]), "labels must be in"),
        (torch.tensor([-1, 0]), "labels must be in"),
        (torch.tensor([0.0, 1.0]), "int64"),
        (torch.tensor([[0], [1]]), "int64"),
    ],
)
def test_split_path_refuses_bad_labels(labels: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message), split_path(dual(), labels):
        pass


def test_wrong_shapes_are_refused() -> None:
    module = dual()
    with pytest.raises(ValueError, match="expected"):
        module(images(2, 4, 3, 3))
    with pytest.raises(ValueError, match="two pixels"):
        module(images(1, 3, 1, 1))
    with pytest.raises(ValueError, match="2 labels"), split_path(module, torch.tensor([0, 1])):
        module(images(3, 3, 2, 2))
    with pytest.raises(ValueError, match="no split"), split_path(nn.Linear(2, 2), torch.tensor([0])):
        pass


def test_components_separate_and_a_symmetric_start_does_not() -> None:
    """Two clusters: EM from a broken symmetry finds them; equal components stay at w = 1/M."""
    rng = np.random.default_rng(0)
    for initialization, separates in (("normal_means", True), ("first_batch", True), ("identical", False)):
        torch.manual_seed(0)
        module = CompoundBatchNorm2d(2, NormConfig(components=2, initialization=initialization, density_scale="joint"))
        for _ in range(60):
            centre = rng.choice([-3.0, 3.0], (16, 1, 4, 4))
            module(torch.from_numpy(rng.normal(centre, 0.5, (16, 2, 4, 4)).astype(np.float32)))
        apart = (module.running_mean[0] - module.running_mean[1]).abs().max().item()
        assert (apart > 4.0) == separates, (initialization, module.running_mean)


def test_a_dead_component_stays_finite_and_can_come_back() -> None:
    module = layer(components=2, features=2, density_scale="joint", momentum=0.5)
    module.running_mean = torch.tensor([[0.0, 0.0], [500.0, 500.0]], dtype=torch.float64)
    module.running_var = torch.ones(2, 2, dtype=torch.float64)
    frozen_mean = module.running_mean[1].clone()
    for step in range(30):
        y = module(images(4, 2, 3, 3, seed=step))
        assert torch.isfinite(y).all()
    assert torch.equal(module.running_mean[1], frozen_mean)
    assert module.running_tau[1] >= TAU_FLOOR / 2
    for step in range(30):
        module(images(4, 2, 3, 3, seed=step) + 500.0)
    assert module.running_tau[1] > 0.9


@pytest.mark.parametrize("value", [1e4, -1e4, 0.0])
def test_constant_channels_give_the_bias(value: float) -> None:
    module = CompoundBatchNorm2d(3, NormConfig(components=2))
    x = torch.full((4, 3, 5, 5), value)
    y = module(x)
    # Every component's batch mean is the constant, so what is left is rounding over sqrt(eps).
    assert y.abs().max() <= 5e-1 if value else torch.equal(y, torch.zeros_like(y))
    assert torch.isfinite(module.running_var).all()
    assert (module.running_var >= 0).all()


def test_extreme_inputs_agree_with_float64() -> None:
    x = images(8, 6, 4, 4) * 1e4
    module = CompoundBatchNorm2d(6, NormConfig(components=3))
    double = CompoundBatchNorm2d(6, NormConfig(components=3)).double()
    double.load_state_dict(module.state_dict())
    torch.testing.assert_close(module(x.float()).double(), double(x.float().double()), **tolerance("float32 offset"))


def test_nan_in_eval_stays_in_its_pixel() -> None:
    module = layer().eval()
    x = images(3, 5, 4, 4)
    clean = module(x)
    x[1, 2, 0, 3] = float("nan")
    y = module(x)
    assert torch.isnan(y[1, :, 0, 3]).all()
    y[1, :, 0, 3] = clean[1, :, 0, 3]
    assert torch.equal(y, clean)


@pytest.mark.parametrize("reading", READINGS)
def test_nan_in_training_poisons_no_statistics(reading: str) -> None:
    module = dual(statistics=reading)
    before = tables(module)
    x = images(3, 3, 2, 2)
    x[0, 0, 0, 0] = float("nan")
    assert torch.isnan(module(x)).any()
    with split_path(module, torch.tensor([0, 0, 1])):
        module(x)
    for name in ("running_tau", "running_mean", "running_var"):
        assert_allclose(tables(module)[name], before[name], rtol=1e-12)


def test_channels_last_and_strides_give_the_same_numbers() -> None:
    x = images(3, 5, 6, 4)
    contiguous, last, strided = layer(), layer(), layer()
    y = contiguous(x)
    y_last = last(x.contiguous(memory_format=torch.channels_last))
    assert y_last.is_contiguous(memory_format=torch.channels_last)
    y_strided = strided(x.repeat_interleave(2, dim=3)[..., ::2])
    torch.testing.assert_close(y_last, y)
    torch.testing.assert_close(y_strided, y)


def test_half_precision_input_is_normalised_in_float32() -> None:
    module = CompoundBatchNorm2d(5, NormConfig(components=2))
    x = images(4, 5, 3, 3)
    y = module(x.bfloat16())
    assert y.dtype == torch.bfloat16
    assert module.running_mean.dtype == torch.float32


@pytest.mark.parametrize(("affine", "extra"), [("shared", []), ("separate", ["split_bias", "split_weight"])])
def test_state_dict_keys_are_a_contract(affine: str, extra: list[str]) -> None:
    module = DualPathBatchNorm2d(6, class_groups(10, 4), NormConfig(split_affine=affine))
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    assert shapes == {
        "weight": (4, 6),
        "bias": (4, 6),
        "running_tau": (4,),
        "running_mean": (4, 6),
        "running_var": (4, 6),
        "num_batches_tracked": (),
        "class_groups": (10,),
        "compound_mean": (4, 6),
        "compound_var": (4, 6),
        **{name: (4, 6) for name in extra},
    }


def test_state_survives_a_round_trip_after_training() -> None:
    """Buffers are rebound at every step; they must still be the module's own buffers."""
    module, other = layer(), layer()
    module(images(4, 5, 3, 3))
    other.load_state_dict(module.state_dict())
    module.eval(), other.eval()
    x = images(2, 5, 3, 3, seed=9)
    assert torch.equal(module(x), other(x))


def test_a_compiled_layer_trains_alike() -> None:
    """Running statistics are rebound, not written in place: the compiler must see that as well."""
    eager, compiled_layer = layer(components=2, features=4).float(), layer(components=2, features=4).float()
    compiled = torch.compile(compiled_layer, backend="aot_eager", fullgraph=True)
    for step in range(3):
        x = images(3, 4, 3, 3, seed=step).float()
        for module in (eager, compiled):
            module(x).square().sum().backward()
    torch.testing.assert_close(compiled_layer.weight.grad, eager.weight.grad, **tolerance("float32 training"))
    for name, table in tables(eager).items():
        assert_allclose(tables(compiled_layer)[name], table, **tolerance("float32 training"))
    eager.eval(), compiled.eval()
    torch.testing.assert_close(compiled(x), eager(x), **tolerance("float32 training"))
