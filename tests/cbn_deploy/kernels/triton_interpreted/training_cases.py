"""The Triton passes of a training step in Triton's interpreter against float64.

Run by test_triton.py in a process of its own: TRITON_INTERPRET must be set before Triton is first imported.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cbn_deploy.kernels import training as operators
from cbn_deploy.kernels.memory_format import dense
from cbn_deploy.kernels.triton import training
from cbn_deploy.norm import CompoundBatchNorm2d, NormConfig, layers
from tests.reference import mixture_float64
from tests.reference.tolerances import TOLERANCES

# numpy computes the lanes past the last pixel too, and tells of overflow and NaN where a GPU does not.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)
TABLES = ("gain", "offset", "curvature", "slope", "constant", "quadratic", "linear")


@dataclass(frozen=True)
class Batch:
    """x and the gradient of y (B, D, P), the centre (D,), posteriors (B, M, P) and tables."""

    x: Tensor
    grad: Tensor
    centre: Tensor
    w: Tensor
    tables: dict[str, Tensor]


def random_batch(
    seed: int,
    images: int,
    channels: int,
    pixels: int,
    components: int,
    dtype: torch.dtype,
    channels_last: bool = False,
) -> Batch:
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random)

    def stored() -> Tensor:
        values = normal(images, channels, pixels).to(dtype)
        return values.movedim(1, -1).contiguous().movedim(-1, 1) if channels_last else values

    tables = {name: normal(components, channels) for name in TABLES} | {"constant": normal(components)}
    # Logits of a few units, whatever the number of channels.
    tables["quadratic"] *= 0.3 * channels**-0.5
    tables["linear"] *= channels**-0.5
    return Batch(
        x=stored(),
        grad=stored(),
        centre=normal(channels),
        w=torch.softmax(normal(images, components, pixels), 1),
        tables=tables,
    )


BATCHES = st.builds(
    random_batch,
    seed=st.integers(0, 2**32 - 1),
    images=st.integers(1, 3),
    channels=st.integers(1, 40) | st.sampled_from([64, 515]),
    pixels=st.sampled_from([1, 4, 7, 16, 25, 64]),
    components=st.integers(1, 16),
    dtype=st.sampled_from([torch.float32, torch.float16]),
    channels_last=st.booleans(),
)


def close(actual: Tensor, expected: Tensor, *, dtype: torch.dtype = torch.float32) -> None:
    """Relative to the largest number of the tensor: sums cancel."""
    row = TOLERANCES["training pass" if dtype == torch.float32 else "training pass float16"]
    error = (actual.double() - expected).abs().max().item()
    assert error <= row.rtol * expected.abs().max().item() + row.atol


def centred(batch: Batch) -> Tensor:
    return batch.x.double() - batch.centre.double()[:, None]


@settings(max_examples=8, deadline=None, phases=PHASES)
@given(batch=BATCHES)
def test_expectation(batch: Batch) -> None:
    # Gaussians whose log-density has the tables as coefficients: P = -1/(2 v), Q = mean / v about the centre.
    random = np.random.default_rng(0)
    shape = tuple(batch.tables["gain"].shape)
    tau, mean = random.dirichlet(np.ones(shape[0])), random.normal(size=shape)
    var, scale = random.uniform(0.5, 2.0, shape), shape[1] ** -0.5
    quadratic, linear = -0.5 * scale / var, scale * mean / var
    constant = np.log(tau) - 0.5 * scale * (mean**2 / var + np.log(var)).sum(1)
    tables = [torch.from_numpy(table).float() for table in (quadratic, linear, constant)]
    w, (mass, first, second) = training.expectation(batch.x, batch.centre, *tables)

    pixels = mixture_float64.pixels(centred(batch).numpy())
    expected_w = mixture_float64.posterior(pixels, tau, mean, var, 0.0, scale)
    close(w, torch.from_numpy(mixture_float64.unpixels(expected_w, tuple(w.shape))))
    expected_mass, expected_mean, expected_var = mixture_float64.m_step(pixels, expected_w)
    close(mass, torch.from_numpy(expected_mass))
    close(first, torch.from_numpy(expected_mass[:, None] * expected_mean))
    close(second, torch.from_numpy(expected_mass[:, None] * (expected_var + expected_mean**2)))


@settings(max_examples=8, deadline=None, phases=PHASES)
@given(batch=BATCHES)
def test_combine(batch: Batch) -> None:
    gain, offset = batch.tables["gain"], batch.tables["offset"]
    out = torch.full_like(batch.x, torch.nan)
    training.combine(batch.x, batch.centre, batch.w, gain, offset, out)
    otherwise = torch.full(out.shape, torch.nan, dtype=out.dtype)  # contiguous, whatever x is
    training.combine(batch.x, batch.centre, batch.w, gain, offset, otherwise)
    assert torch.equal(out, otherwise)
    expected = centred(batch) * torch.einsum("bmp,md->bdp", batch.w.double(), gain.double())
    expected += torch.einsum("bmp,md->bdp", batch.w.double(), offset.double())
    close(out, expected, dtype=batch.x.dtype)


@settings(max_examples=8, deadline=None, phases=PHASES)
@given(batch=BATCHES)
def test_output_sums(batch: Batch) -> None:
    through_gain, through_offset = training.output_sums(batch.grad, batch.x, batch.centre, batch.w)
    w, g = batch.w.double(), batch.grad.double()
    close(through_gain, torch.einsum("bmp,bdp->md", w, g * centred(batch)))
    close(through_offset, torch.einsum("bmp,bdp->md", w, g))


@settings(max_examples=8, deadline=None, phases=PHASES)
@given(batch=BATCHES)
def test_input_gradient_is_the_derivative(batch: Batch) -> None:
    # What the pass promises, written as a scalar whose derivative torch takes: g y plus what w and c are worth to the
    # batch's moments, with w = softmax of logits whose derivative by c is quadratic c + linear.
    tables = {name: table.double() for name, table in batch.tables.items()}
    x = batch.x.double().requires_grad_()
    c = x - batch.centre.double()[:, None]

    def product(name: str, values: Tensor) -> Tensor:
        return torch.einsum("md,bdp->bmp", tables[name], values)

    logits = 0.5 * product("quadratic", c.square()) + product("linear", c)
    w = torch.softmax(logits, 1)
    y = c * torch.einsum("bmp,md->bdp", w, tables["gain"]) + torch.einsum("bmp,md->bdp", w, tables["offset"])
    worth = product("curvature", c.square()) + product("slope", c) + tables["constant"][:, None]
    ((batch.grad.double() * y).sum() + (w * worth).sum()).backward()

    actual = training.input_gradient(
        batch.grad, batch.x, batch.centre, w.detach().float(), [batch.tables[name] for name in TABLES]
    )
    assert x.grad is not None
    assert actual.dtype == batch.x.dtype
    assert actual.stride() == batch.x.stride()
    close(actual, x.grad, dtype=batch.x.dtype)


def test_sums_are_the_same_in_every_run() -> None:
    batch = random_batch(3, 4, 24, 100, 4, torch.float32)
    once, again = (training.output_sums(batch.grad, batch.x, batch.centre, batch.w) for _ in range(2))
    for left, right in zip(once, again, strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize("channels_last", [False, True], ids=["channels first", "channels last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_layer_trains_over_these_passes_as_in_float64(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, channels_last: bool
) -> None:
    torch.manual_seed(0)
    layer = CompoundBatchNorm2d(12, NormConfig(components=3)).train()
    x, grad = torch.randn(4, 12, 5, 5).to(dtype), torch.randn(4, 12, 5, 5).to(dtype)

    def step(layer: nn.Module, x: Tensor) -> list[Tensor]:
        copied, pixels = copy.deepcopy(layer), x.clone().requires_grad_()
        y = copied(pixels)
        gradients = torch.autograd.grad(y, [pixels, copied.weight, copied.bias], grad.to(x.dtype))
        return [y.detach(), *gradients, copied.running.mean, copied.running.var]

    expected = step(copy.deepcopy(layer).double(), x.double())
    seen = []

    def passes(given: Tensor, components: int) -> ModuleType:
        assert components == 3
        seen.append((given.dtype, given.is_contiguous(memory_format=torch.channels_last)))
        return training

    # As on CUDA.
    monkeypatch.setattr(operators.cuda, "training_passes", passes)
    monkeypatch.setattr(layers, "readable", dense)
    stored = x.to(memory_format=torch.channels_last) if channels_last else x
    for actual, exact in zip(step(layer, stored), expected, strict=True):
        close(actual, exact, dtype=dtype)
    assert seen == [(dtype, channels_last)] * 3  # nothing is converted on the way


def test_a_gradient_in_the_other_memory_format_is_brought_into_that_of_x() -> None:
    pixels, values = torch.zeros(2, 4, 6), torch.arange(48.0).reshape(2, 4, 2, 3)
    last = pixels.movedim(1, -1).contiguous().movedim(-1, 1)
    for target in (pixels, last):
        for grad in (values, values.to(memory_format=torch.channels_last), values.repeat_interleave(2, 3)[..., ::2]):
            brought = operators.stored_like(target, operators._flat(grad))
            assert brought.stride() == target.stride()
            assert torch.equal(brought, values.flatten(2))
