"""The table kernels of a training step in Triton's interpreter, against float64 and against autograd.

Run by test_triton.py in a process of its own: TRITON_INTERPRET must be set before Triton is first imported.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cbn_deploy.kernels import cuda
from cbn_deploy.kernels.memory_format import dense
from cbn_deploy.kernels.training_steps import NormalizerTables
from cbn_deploy.kernels.triton import training, training_tables
from cbn_deploy.norm import CompoundBatchNorm2d, DualPathBatchNorm2d, NormConfig, class_groups, layers, split_path
from cbn_deploy.norm.statistics import MIN_MASS, TAU_FLOOR
from tests.reference import mixture_float64 as oracle
from tests.reference.tolerances import TOLERANCES, tolerance

# numpy computes the lanes past the last channel too, and tells of overflow and NaN where a GPU does not.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)
SIZES = {"components": st.integers(1, 16), "channels": st.integers(1, 40) | st.sampled_from([64, 515, 2048])}
EPS = 1e-5


@dataclass(frozen=True)
class Tables:
    """tau (M,), centre (D,), the rest (M, D), float32."""

    tau: Tensor
    centre: Tensor
    mean: Tensor
    var: Tensor
    scale: Tensor
    bias: Tensor


def random_tables(seed: int, components: int, channels: int, spread: float = 1.0) -> Tables:
    random = np.random.default_rng(seed)
    shape = (components, channels)
    arrays = (
        random.dirichlet(np.ones(components)),
        random.normal(0.5, 2.0, channels),
        random.normal(0.5, 1.5) + spread * random.normal(size=shape),
        1.3 * np.exp(spread * random.normal(0.0, 0.5, shape)),
        random.normal(1.0, 0.3, shape),
        random.normal(0.0, 0.3, shape),
    )
    return Tables(*(torch.from_numpy(array).float() for array in arrays))


TABLES = st.builds(random_tables, seed=st.integers(0, 2**32 - 1), **SIZES)
# One program a component and piece of channels: the interpreter is slow.
FEW = st.builds(
    random_tables,
    seed=st.integers(0, 2**32 - 1),
    components=st.integers(1, 5) | st.just(16),
    channels=st.integers(1, 40),
)
ALIKE = st.builds(random_tables, seed=st.integers(0, 2**32 - 1), **SIZES, spread=st.sampled_from([1e-2, 1e-4]))


def close(actual: Tensor, expected: Tensor | np.ndarray) -> None:
    """Relative to the largest number of the tensor: sums cancel."""
    expected = torch.as_tensor(expected)
    row = TOLERANCES["training table"]
    error = (actual.double() - expected).abs().max().item()
    assert error <= row.rtol * expected.abs().max().item() + row.atol


@settings(max_examples=12, deadline=None, phases=PHASES)
@given(tables=TABLES | ALIKE, density_scale=st.sampled_from([1.0, 0.1]))
def test_density(tables: Tables, density_scale: float) -> None:
    quadratic, linear, constant = training_tables.density(
        tables.centre, tables.tau, tables.mean, tables.var, EPS, density_scale
    )
    mean, var, centre = tables.mean.double(), tables.var.double(), tables.centre.double()
    v, v0 = var + EPS, var.mean(0) + EPS
    close(quadratic, -0.5 * density_scale * (1 / v - 1 / v0))
    # What is left of slopes after their mean has been taken out carries the slopes' rounding; so do the constants.
    slope = (mean - centre) / v
    error = (linear - density_scale * (slope - slope.mean(0))).abs().max().item()
    assert error <= TOLERANCES["training table"].rtol * density_scale * slope.abs().max().item()
    distance = ((mean - centre).square() / v + (v / v0).log()).sum(1)
    expected = -0.5 * density_scale * (distance - distance.mean())
    error = (constant.double() - tables.tau.double().log() - expected).abs().max().item()
    assert error <= TOLERANCES["training table"].rtol * (1 + density_scale * distance.abs().max().item())


def test_a_prior_of_zero_claims_nothing() -> None:
    tables = random_tables(0, 3, 5)
    tau = torch.tensor([0.25, 0.0, 0.75])
    *_, constant = training_tables.density(tables.centre, tau, tables.mean, tables.var, EPS, 1.0)
    assert constant.isneginf().tolist() == [False, True, False]


@dataclass(frozen=True)
class Parts:
    """Pixels (N, D) about a centre (D,), posteriors (N, M), both float64, and what programs would leave of them."""

    centre: Tensor
    c: Tensor
    w: Tensor
    masses: Tensor
    sums: Tensor


def random_parts(seed: int, components: int, channels: int, parts: int, mass_parts: int) -> Parts:
    random = torch.Generator().manual_seed(seed)
    pixels = max(parts, mass_parts)
    c = torch.randn(pixels, channels, generator=random, dtype=torch.float64)
    w = torch.softmax(torch.randn(pixels, components, generator=random, dtype=torch.float64), 1)
    if components > 2:
        w[:, 1] = 0.0  # an empty component
    if channels > 2:
        c[:, 1] = 0.7  # a constant channel
    masses = torch.stack([part.sum(0) for part in w.tensor_split(mass_parts)])
    both = torch.stack([w[:, :, None] * c[:, None], w[:, :, None] * c[:, None].square()], 2)
    sums = torch.stack([part.sum(0) for part in both.tensor_split(parts)])
    return Parts(torch.randn(channels, generator=random), c, w, masses.float(), sums.float())


PARTS = st.builds(
    random_parts,
    seed=st.integers(0, 2**32 - 1),
    components=st.integers(1, 5) | st.just(16),
    channels=st.integers(1, 40) | st.just(70),
    parts=st.sampled_from([1, 3, 256, 300]),
    mass_parts=st.sampled_from([1, 5, 300, 528]),
)


@settings(max_examples=12, deadline=None, phases=PHASES)
@given(parts=PARTS)
def test_moments(parts: Parts) -> None:
    mass, mean, var = training_tables.moments(parts.masses, parts.sums, parts.centre)
    expected_mass, shift, expected_var = oracle.m_step(parts.c.numpy(), parts.w.numpy())
    empty = expected_mass == 0
    shift[empty], expected_var[empty] = 0.0, 0.0
    close(mass, expected_mass)
    close(mean, parts.centre.double() + torch.from_numpy(shift))
    # A difference of mean squares and squared means.
    squares = (expected_var + shift**2).max()
    assert np.abs(var.numpy() - expected_var).max() <= TOLERANCES["training table"].rtol * squares
    assert (var >= 0).all()


def test_the_moments_of_a_batch_with_nan_are_nan() -> None:
    parts = random_parts(1, 3, 4, 2, 2)
    parts.sums[0, 0, :, 2] = torch.nan
    parts.masses[1, 2] = torch.nan
    mass, mean, var = training_tables.moments(parts.masses, parts.sums, parts.centre)
    assert mass.isnan().tolist() == [False, False, True]
    expected = torch.zeros(3, 4, dtype=torch.bool)
    expected[0, 2] = expected[2] = True
    assert torch.equal(mean.isnan(), expected)
    assert torch.equal(var.isnan(), expected)


@settings(max_examples=12, deadline=None, phases=PHASES)
@given(tables=FEW, parts=st.sampled_from([1, 5, 300]))
@example(tables=random_tables(0, 2, 515), parts=1)
def test_gradient_tables_are_the_derivatives(tables: Tables, parts: int) -> None:
    # y = sum_j w_j (A_j c + B_j), so the loss moves as A sum(w c g) + B sum(w g). Its derivatives by scale, bias and,
    # through mean and var, by the sums of w, w c and w c^2 of which they were made are what the kernel promises.
    random = torch.Generator().manual_seed(0)
    components, channels = tables.mean.shape
    partial = torch.randn((parts, components, 2, channels), generator=random)
    through_offset, through_gain = partial.double().sum(0).unbind(1)
    mass = torch.rand(components, generator=random, dtype=torch.float64) * 50 + 2
    constant_moments = torch.arange(components) % 3 == 1
    shift, var = tables.mean.double() - tables.centre.double(), tables.var.double()
    sums = [mass.clone(), mass[:, None] * shift, mass[:, None] * (var + shift.square())]
    scale, bias = tables.scale.double(), tables.bias.double()
    leaves = [tensor.requires_grad_() for tensor in (*sums, scale, bias)]
    moved_shift = sums[1] / sums[0][:, None]
    gain = scale * (sums[2] / sums[0][:, None] - moved_shift.square() + EPS).rsqrt()
    offset = bias - gain * moved_shift
    worth = (gain * through_gain + offset * through_offset).sum()
    constant, slope, curvature, grad_scale, grad_bias = torch.autograd.grad(worth, leaves)
    for table in (constant, slope, curvature):
        table[constant_moments] = 0.0

    quadratic, linear = (torch.randn((components, channels), generator=random) for _ in range(2))
    inverse = torch.where(constant_moments, 0.0, 1 / mass).float()
    given = NormalizerTables(
        tables.centre, quadratic, linear, tables.mean, tables.var, inverse, tables.scale, tables.bias
    )
    packed, pieces, actual_scale, actual_bias = training_tables.gradient_tables(partial, given, EPS)
    expected = (gain.detach(), offset.detach(), curvature, slope, 2.0 * quadratic.double(), linear.double())
    for actual, table in zip(packed.unbind(1), expected, strict=True):
        close(actual, table)
    close(actual_scale, grad_scale)
    close(actual_bias, grad_bias)
    # A sum over channels that cancels: by the size of its terms.
    terms = (curvature * shift.square()).abs().sum(1).max().item() + 1.0
    assert (pieces.double().sum(1) - constant).abs().max().item() <= TOLERANCES["training table"].rtol * terms
    close(training_tables.combination(given, EPS)[0], gain.detach())
    close(training_tables.combination(given, EPS)[1], offset.detach())


def expected_learning(batch: list[np.ndarray], running: list[np.ndarray], momentum: float) -> list[np.ndarray]:
    """Mean and var that normalise, 1 / mass, tau, mean, var of ``batch_em``, a component at a time."""
    mass, mean, var = batch
    tau, new_mean, new_var = (table.copy() for table in running)
    used_mean, used_var, inverse = running[1].copy(), running[2].copy(), np.zeros_like(mass)
    for j in range(len(mass)):
        if not mass[j] >= MIN_MASS:
            continue
        used_mean[j], used_var[j], inverse[j] = mean[j], var[j], 1 / mass[j]
        if np.isfinite(mean[j]).all() and np.isfinite(var[j]).all():
            new_mean[j] = oracle.ema(new_mean[j], mean[j], 1 - momentum)
            new_var[j] = oracle.ema(new_var[j], var[j] * mass[j] / (mass[j] - 1), 1 - momentum)
    share = mass / mass.sum()
    if np.isfinite(share).all():
        tau = oracle.ema(tau, share, 1 - momentum)
    tau = np.maximum(tau, TAU_FLOOR)
    return [used_mean, used_var, inverse, tau / tau.sum(), new_mean, new_var]


@settings(max_examples=20, deadline=None, phases=PHASES)
@given(
    seed=st.integers(0, 2**32 - 1),
    **SIZES,
    momentum=st.sampled_from([0.1, 0.9, 1.0]),
    update_tau=st.booleans(),
    with_own=st.booleans(),
    flaw=st.sampled_from(["none", "nan mean", "infinite variance", "nan mass", "nothing"]),
)
def test_learning(
    seed: int, components: int, channels: int, momentum: float, update_tau: bool, with_own: bool, flaw: str
) -> None:
    batch_tables, tables = random_tables(seed, components, channels), random_tables(seed + 1, components, channels)
    random = np.random.default_rng(seed)
    mass = torch.from_numpy(random.choice([0.0, 1.5, 2.0, 30.0, 4000.0], components)).float()
    batch = [mass, batch_tables.mean, batch_tables.var]
    running = [tables.tau, tables.mean, tables.var]
    if flaw == "nan mean":
        batch[1][-1, -1] = torch.nan
    elif flaw == "infinite variance":
        batch[2][0, 0] = torch.inf
    elif flaw == "nan mass":
        mass[0] = torch.nan
    elif flaw == "nothing":
        mass.zero_()
    own = (tables.scale.clone(), tables.bias.square()) if with_own else None
    before = [tensor.clone() for tensor in (*running, *(own or ()))]
    results = training_tables.learned(
        tuple(batch),
        tuple(running),
        own,
        torch.tensor(7),
        momentum=momentum,
        update_tau=update_tau,
        least_mass=MIN_MASS,
        tau_floor=TAU_FLOOR,
    )
    exact = [table.double().numpy() for table in batch]
    expected = expected_learning(exact, [table.double().numpy() for table in running], momentum)
    expected[3] = expected[3] if update_tau else tables.tau.double().numpy()
    if own:
        expected += expected_learning(exact, [expected[3], *(table.double().numpy() for table in own)], momentum)[4:]
    for actual, exact_table in zip(results[: len(expected)], expected, strict=True):
        # An average of two numbers of a few units can cancel.
        row = TOLERANCES["training table"]
        np.testing.assert_allclose(actual.numpy(), exact_table, rtol=row.rtol, atol=8 * row.rtol)
    assert results[8].item() == 8
    assert results[8].dtype == torch.int64
    assert own or results[6].numel() == results[7].numel() == 0
    for tensor, old in zip((*running, *(own or ())), before, strict=True):
        assert torch.equal(tensor, old)  # out of place


def steps(module: nn.Module, batches: list[Tensor], labels: Tensor | None) -> list[Tensor]:
    """Two forwards before each backward: outputs, gradients and, at last, everything the layer keeps."""
    found: list[Tensor] = []
    for x in batches:
        pixels = x.clone().requires_grad_()
        y = module(pixels)
        if labels is not None:
            with split_path(module, labels):
                y = y + module(pixels.flip(0))
        module.zero_grad()
        y.square().mul(torch.linspace(0.5, 1.5, y.numel()).reshape(y.shape).to(y.dtype)).sum().backward()
        found += [y.detach(), pixels.grad, module.weight.grad.clone(), module.bias.grad.clone()]
    return found + [value.clone() for name, value in sorted(module.state_dict().items())]


@pytest.mark.parametrize("dual", [False, True], ids=["compound", "dual"])
@pytest.mark.parametrize("posterior_gradient", [True, False])
def test_layers_train_as_with_plain_tables(
    monkeypatch: pytest.MonkeyPatch, dual: bool, posterior_gradient: bool
) -> None:
    torch.manual_seed(3)
    config = NormConfig(components=4, posterior_gradient=posterior_gradient)
    module = DualPathBatchNorm2d(10, class_groups(8, 4), config) if dual else CompoundBatchNorm2d(10, config)
    batches = [torch.randn(6, 10, 4, 4) * (1 + step) for step in range(4)]
    batches[2][0, 3, 1, 1] = torch.nan
    labels = torch.tensor([0, 1, 2, 2, 3, 0]) if dual else None  # nothing of the last group
    plain = steps(copy.deepcopy(module), batches, labels)
    # As on CUDA.
    launched = []
    monkeypatch.setattr(cuda, "training_passes", lambda *_: training)
    monkeypatch.setattr(cuda, "split_passes", lambda *_: None)
    monkeypatch.setattr(cuda, "takes_tables", lambda *_: True)
    monkeypatch.setattr(layers, "readable", dense)
    learned = training_tables.learned
    monkeypatch.setattr(
        training_tables, "learned", lambda *given, **options: launched.append(1) or learned(*given, **options)
    )
    fused = steps(copy.deepcopy(module), batches, labels)
    assert len(launched) == len(batches) * (2 if dual else 1)
    for actual, expected in zip(fused, plain, strict=True):
        size = max(1.0, expected.nan_to_num().abs().max().item())
        row = tolerance("float32 training")
        torch.testing.assert_close(
            actual, expected, rtol=row["rtol"], atol=row["atol"] * size, equal_nan=True, check_dtype=True
        )
