"""The split path's Triton passes in Triton's interpreter against float64.

Run by test_triton.py in a process of its own: TRITON_INTERPRET must be set before Triton is first imported.
"""

from __future__ import annotations

import copy
import importlib
from dataclasses import dataclass
from types import ModuleType

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cbn_deploy.kernels import cuda, split_groups
from cbn_deploy.kernels.split_groups import GroupGradients
from cbn_deploy.kernels.triton import split
from cbn_deploy.norm import DualPathBatchNorm2d, NormConfig, SplitBatchNorm2d, split_path
from tests.reference.tolerances import TOLERANCES

# numpy computes the lanes past the last pixel too, and tells of overflow and NaN where a GPU does not.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)
ROUNDING = {
    torch.float32: "training pass",
    torch.float16: "training pass float16",
    torch.bfloat16: "training pass bfloat16, truncated",
}
EPS = 1e-3
# The name is that of an operator, too.
operators = importlib.import_module("cbn_deploy.kernels.split_training")


@dataclass(frozen=True)
class Batch:
    """x and the gradient of y (B, D, P), groups (B,) of which the last of several is empty, and tables (M, D)."""

    x: Tensor
    grad: Tensor
    groups: Tensor
    mean: Tensor
    var: Tensor
    scale: Tensor
    bias: Tensor
    inverse_mass: Tensor

    @property
    def components(self) -> int:
        """M."""
        return len(self.mean)

    def of_images(self, table: Tensor) -> Tensor:
        """(M, D) -> (B, D, 1), float64."""
        return table.double()[self.groups][..., None]

    @property
    def centred(self) -> Tensor:
        """x less its group's mean, float64."""
        return self.x.double() - self.of_images(self.mean)


def in_format(values: Tensor, channels_last: bool) -> Tensor:
    return values.movedim(1, -1).contiguous().movedim(-1, 1) if channels_last else values


def random_batch(
    seed: int,
    images: int,
    channels: int,
    pixels: int,
    components: int,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
) -> Batch:
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random)

    table = (components, channels)
    return Batch(
        x=in_format(normal(images, channels, pixels).to(dtype), channels_last),
        grad=in_format(normal(images, channels, pixels).to(dtype), channels_last),
        groups=torch.randint(max(1, components - 1), (images,), generator=random),
        mean=normal(*table),
        var=normal(*table).square() + 0.1,
        scale=normal(*table),
        bias=normal(*table),
        # The first group's moments are constants.
        inverse_mass=torch.arange(components) / (7.0 * components),
    )


BATCHES = st.builds(
    random_batch,
    seed=st.integers(0, 2**32 - 1),
    images=st.integers(1, 5),
    channels=st.integers(1, 40) | st.sampled_from([64, 130]),
    pixels=st.sampled_from([1, 4, 7, 16, 25, 64, 784]),
    components=st.integers(1, 16),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    channels_last=st.booleans(),
)


def close(actual: Tensor, expected: Tensor, row: str = "training pass") -> None:
    """Relative to the largest number of the tensor: sums cancel."""
    tolerance = TOLERANCES[row]
    error = (actual.double() - expected).abs().max().item()
    assert error <= tolerance.rtol * expected.abs().max().item() + tolerance.atol


def assert_moments(x: Tensor) -> None:
    mean, var = split.moments(x)
    close(mean, x.double().mean(2))
    close(var, x.double().var(2, correction=0))


@settings(max_examples=15, deadline=None, phases=PHASES)
@given(batch=BATCHES)
def test_moments(batch: Batch) -> None:
    assert_moments(batch.x)


@pytest.mark.parametrize("channels_last", [False, True], ids=["channels first", "channels last"])
@pytest.mark.parametrize("pixels", [1023, 1025, 3136])
def test_moments_of_many_pixels(pixels: int, channels_last: bool) -> None:
    assert_moments(random_batch(0, 1, 19, pixels, 1, channels_last=channels_last).x)


@pytest.mark.parametrize("channels_last", [False, True], ids=["channels first", "channels last"])
@pytest.mark.parametrize("pixels", [81, 2500])
def test_moments_of_a_large_common_offset_lose_nothing(pixels: int, channels_last: bool) -> None:
    x = in_format(torch.randn(2, 20, pixels, generator=torch.Generator().manual_seed(0)) + 1e4, channels_last)
    x[:, 3] = 1e4 / 3
    mean, var = split.moments(x)
    torch.testing.assert_close(mean.double(), x.double().mean(2), rtol=1e-6, atol=0)
    row = TOLERANCES["float32 offset"]
    torch.testing.assert_close(var.double(), x.double().var(2, correction=0), rtol=row.rtol, atol=row.atol)
    assert torch.equal(split.moments(torch.full((1, 3, 1), 1e4))[1], torch.zeros(1, 3))


@settings(max_examples=15, deadline=None, phases=PHASES)
@given(batch=BATCHES, images=st.sampled_from([0, 3, 127, 130, 300]))
def test_group_moments(batch: Batch, images: int) -> None:
    random = torch.Generator().manual_seed(images)
    mean, var = (torch.randn(images, batch.x.shape[1], generator=random) for _ in range(2))
    groups = torch.randint(max(1, batch.components - 1), (images,), generator=random)
    found = split.group_moments(mean, var.square(), groups, 49, batch.components)
    expected = split_groups.group_moments(mean.double(), var.double().square(), groups, 49, batch.components)
    for actual, exact in zip(found, expected, strict=True):
        assert actual.dtype == torch.float32
        if images:
            close(actual, exact)
        else:
            assert not actual.any()
    if batch.components > 1:  # a group of no images
        assert not any(table[-1].any() for table in found)


def test_one_images_nan_stays_in_its_group() -> None:
    mean, groups = torch.ones(3, 2), torch.tensor([0, 1, 1])
    mean[0, 0] = torch.nan
    _, found, var = split.group_moments(mean, mean, groups, 4, 2)
    assert torch.equal(found.isnan(), torch.tensor([[True, False], [False, False]]))
    assert torch.equal(var.isnan(), found.isnan())


@settings(max_examples=12, deadline=None, phases=PHASES)
@given(batch=BATCHES)
def test_normalize(batch: Batch) -> None:
    out = torch.full_like(batch.x, torch.nan)
    split.normalize(batch.x, batch.groups, batch.mean, batch.var, batch.scale, batch.bias, EPS, out)
    expected = batch.of_images(batch.scale) * batch.centred / (batch.of_images(batch.var) + EPS).sqrt()
    close(out, expected + batch.of_images(batch.bias), ROUNDING[out.dtype])


@settings(max_examples=12, deadline=None, phases=PHASES)
@given(batch=BATCHES)
def test_gradient_sums(batch: Batch) -> None:
    products, sums = split.gradient_sums(batch.grad, batch.x, batch.groups, batch.mean)
    close(products, (batch.centred * batch.grad.double()).sum(2))
    close(sums, batch.grad.double().sum(2))


@settings(max_examples=12, deadline=None, phases=PHASES)
@given(batch=BATCHES, images=st.sampled_from([0, 3, 130, 300]))
def test_group_gradients(batch: Batch, images: int) -> None:
    random = torch.Generator().manual_seed(images)
    products, sums = (torch.randn(images, batch.x.shape[1], generator=random) for _ in range(2))
    groups = torch.randint(batch.components, (images,), generator=random)
    found = split.group_gradients(products, sums, groups, batch.var, batch.inverse_mass, batch.scale, EPS)
    tables = (table.double() for table in (batch.var, batch.inverse_mass, batch.scale))
    expected = split_groups.group_gradients(products.double(), sums.double(), groups, *tables, EPS)
    for actual, exact in zip(found, expected, strict=True):
        close(actual, exact)
    assert not found.curvature[0].any()
    assert not found.slope[0].any()


@settings(max_examples=12, deadline=None, phases=PHASES)
@given(batch=BATCHES)
def test_input_gradient(batch: Batch) -> None:
    unused = torch.empty(0)
    tables = GroupGradients(unused, unused, batch.scale, batch.var, batch.bias)
    out = torch.full_like(batch.x, torch.nan)
    split.input_gradient(batch.grad, batch.x, batch.groups, batch.mean, tables, out)
    gain, curvature, slope = (batch.of_images(table) for table in (batch.scale, batch.var, batch.bias))
    close(out, gain * batch.grad.double() + 2 * curvature * batch.centred + slope, ROUNDING[out.dtype])


def test_sums_are_the_same_in_every_run() -> None:
    batch = random_batch(3, 5, 24, 100, 4)
    for _ in range(2):
        once, again = (split.gradient_sums(batch.grad, batch.x, batch.groups, batch.mean) for _ in range(2))
        assert all(torch.equal(left, right) for left, right in zip(once, again, strict=True))


def step(layer: nn.Module, x: Tensor, grad: Tensor, labels: Tensor) -> dict[str, Tensor]:
    copied, pixels = copy.deepcopy(layer), x.clone().requires_grad_()
    with split_path(copied, labels):
        y = copied(pixels)
    parameters = {name: value for name, value in copied.named_parameters() if name in ("weight", "bias")}
    gradients = torch.autograd.grad(y, [pixels, *parameters.values()], grad.to(x.dtype))
    names = ("y", "gradient of x", *parameters)
    moments = {"mean": copied.running_mean, "var": copied.running_var}
    return dict(zip(names, (y.detach(), *gradients), strict=True)) | moments


@pytest.mark.parametrize("channels_last", [False, True], ids=["channels first", "channels last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("kind", [SplitBatchNorm2d, DualPathBatchNorm2d])
def test_a_layer_trains_over_these_passes_as_in_float64(
    monkeypatch: pytest.MonkeyPatch, kind: type[nn.Module], dtype: torch.dtype, channels_last: bool
) -> None:
    torch.manual_seed(0)
    # A class an image, and a group without one; the layer falls back to running statistics there.
    layer = kind(12, torch.tensor([0, 1, 0, 1, 2]), NormConfig(components=3, split_affine="shared")).train()
    x, grad, labels = torch.randn(4, 12, 5, 5).to(dtype), torch.randn(4, 12, 5, 5).to(dtype), torch.arange(4)
    expected = step(copy.deepcopy(layer).double(), x.double(), grad, labels)
    seen = []

    def passes(given: Tensor, components: int) -> ModuleType:
        assert components == 3
        seen.append((given.dtype, given.is_contiguous(memory_format=torch.channels_last)))
        return split

    monkeypatch.setattr(cuda, "split_passes", passes)  # as on CUDA
    stored = x.to(memory_format=torch.channels_last) if channels_last else x
    actual = step(layer, stored, grad, labels)
    for name, exact in expected.items():
        close(actual[name], exact, ROUNDING[actual[name].dtype])
    for name in ("y", "gradient of x"):
        assert actual[name].stride() == stored.stride()
    assert set(seen) == {(dtype, channels_last)}  # nothing is converted on the way


@pytest.mark.parametrize("synchronized", [False, True])
def test_gradients_that_are_stored_otherwise_and_ranks_that_exchange(
    monkeypatch: pytest.MonkeyPatch, synchronized: bool
) -> None:
    # As if another rank had the same gradients.
    twice = lambda found: found._replace(mean=2 * found.mean, var=2 * found.var)  # noqa: E731
    monkeypatch.setattr(split_groups, "moments_of_all_ranks", twice)
    batch = random_batch(5, 4, 6, 20, 3)
    tables = (batch.mean, batch.var, batch.inverse_mass, batch.scale)
    arguments = (batch.x.reshape(4, 6, 4, 5), batch.groups, *tables, EPS, synchronized)
    grad = batch.grad.reshape(4, 6, 4, 5)
    expected = torch.ops.cbn.split_normalize_backward(grad, *arguments)
    monkeypatch.setattr(cuda, "split_passes", lambda *_: split)
    last = grad.to(memory_format=torch.channels_last)
    apart = grad.repeat_interleave(2, 3)[..., ::2]
    for x, given_grad in ((0, last), (0, apart), (torch.channels_last, grad), (torch.channels_last, apart)):
        pixels = arguments[0].to(memory_format=x) if x else arguments[0]
        found = torch.ops.cbn.split_normalize_backward(given_grad, pixels, *arguments[1:])
        assert found[0].stride() == pixels.stride()
        for actual, exact in zip(found, expected, strict=True):
            close(actual, exact.double())


def test_an_empty_batch_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "split_passes", lambda *_: split)
    x, groups = torch.zeros(0, 3, 2, 2), torch.zeros(0, dtype=torch.long)
    assert not any(table.any() for table in torch.ops.cbn.group_moments(x, groups, 2))
    tables = [torch.ones(2, 3), torch.ones(2, 3), torch.zeros(2), torch.ones(2, 3)]
    assert torch.ops.cbn.split_normalize(x, groups, *tables, torch.ones(2, 3), EPS).shape == x.shape
    grad_x, *of_tables = torch.ops.cbn.split_normalize_backward(x, x, groups, *tables, EPS)
    assert grad_x.shape == x.shape
    assert not any(table.any() for table in of_tables)
