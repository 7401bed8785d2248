"""Every launch as Python makes it: Triton binds its arguments and compiles what compute capability 9.0 would run.

The driver is asked for nothing but its device's name, so a stand-in can give it; the launch itself is left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not installed")

from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import KernelInterface

from cbn_deploy.kernels import cuda
from cbn_deploy.kernels import training as operators
from cbn_deploy.kernels.memory_format import dense, empty_like_dense
from cbn_deploy.kernels.training_steps import NormalizerTables
from cbn_deploy.kernels.triton import operator, training, training_tables
from cbn_deploy.norm import CompoundBatchNorm2d, DualPathBatchNorm2d, NormConfig, class_groups, layers
from tests.cbn_deploy.kernels.training_cases import random_problem

FIRST, LAST = torch.contiguous_format, torch.channels_last


class Hopper:
    """What Triton asks of a driver before it launches."""

    def get_current_target(self) -> GPUTarget:
        """Compute capability 9.0."""
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        """The first."""
        return 0

    def get_current_stream(self, device: int) -> int:
        """The default one."""
        return device

    def get_active_torch_device(self) -> torch.device:
        """As tensors name it."""
        return torch.device("cuda", 0)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Names of the kernels that were bound and compiled."""
    names: list[str] = []

    def bind(
        kernel: KernelInterface, grid: tuple[int, ...], *arguments: object, warps: int, **constants: object
    ) -> None:
        compiled = kernel.warmup(*arguments, grid=grid, **constants, num_warps=warps, enable_fp_fusion=True)
        assert "ptx" in compiled.asm
        assert max(grid[1:], default=1) < 2**16  # what the second and third dimension of a grid may be
        assert compiled.metadata.shared <= 48 * 1024
        names.append(kernel.fn.__name__)

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for module in (operator, training, training_tables):
        monkeypatch.setattr(module, "start", bind)
    monkeypatch.setattr(driver, "_active", Hopper())
    return names


@pytest.mark.parametrize(("dtype", "form"), [(torch.float32, FIRST), (torch.bfloat16, LAST)])
def test_inference(launched: list[str], dtype: torch.dtype, form: torch.memory_format) -> None:
    p = random_problem(0, (2, 48, 5, 4), 3)
    x = p.x.to(dtype).contiguous(memory_format=form)
    tables: list[Tensor] = [table.float() for table in p[1:]]
    y, posterior = operator.compound_batch_norm(x, *tables, 1e-5, 0.5, residual=x, relu=True, with_posterior=True)
    operator.compound_batch_norm(x, *tables, 1e-5, 0.5)
    assert (y.dtype, y.stride()) == (dtype, x.stride())
    assert posterior is not None
    assert launched == ["tables_kernel", "forward_kernel"] * 2


# Operations of torch that launch nothing themselves: allocations, views, and what only calls others.
QUIET = re.compile(r"aten::(empty|new_empty|resize_|(_reshape_)?alias|view|reshape|detach|as_strided|movedim|permute)")
CALLERS = re.compile(r"aten::(to|contiguous)$")


def computed(step: Callable[[], Any]) -> tuple[Any, list[str]]:
    """What ``step`` returns, and the operations of torch in it, inside our operators too, that CUDA would launch."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        result = step()
    names = []
    for event in profile.events():
        above = event.cpu_parent
        while above is not None and (not above.name.startswith("aten::") or CALLERS.match(above.name)):
            above = above.cpu_parent
        silent = QUIET.match(event.name) or CALLERS.match(event.name)
        if event.name.startswith("aten::") and above is None and not silent:
            names.append(event.name.removeprefix("aten::"))
    return result, names


@pytest.fixture
def as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors of the CPU are launched for as if they were on a GPU."""
    monkeypatch.setattr(cuda, "training_passes", lambda *_: training)
    monkeypatch.setattr(cuda, "takes_tables", lambda *_: True)
    monkeypatch.setattr(operators, "empty_output", empty_like_dense)
    monkeypatch.setattr(layers, "readable", dense)


@pytest.mark.usefixtures("as_on_cuda")
@pytest.mark.parametrize("dual", [False, True], ids=["compound", "dual"])
@pytest.mark.parametrize(
    ("channels", "dtype", "form"), [(48, torch.float32, FIRST), (48, torch.bfloat16, LAST), (520, torch.float16, FIRST)]
)
def test_a_training_step(
    launched: list[str], channels: int, dtype: torch.dtype, form: torch.memory_format, dual: bool
) -> None:
    """Every launch of it: beside the kernels nothing but the mean of the channels."""
    config = NormConfig(components=3)
    layer = DualPathBatchNorm2d(channels, class_groups(6, 3), config) if dual else CompoundBatchNorm2d(channels, config)
    x = torch.randn(2, channels, 5, 4).to(dtype).contiguous(memory_format=form).requires_grad_()
    y, forward = computed(lambda: layer.train()(x))
    sums = ["weighted_sums_kernel"] if channels > 512 else []
    statistics = ["density_kernel", "expectation_kernel", *sums, "moments_kernel"]
    assert launched == [*statistics, "learning_kernel", "combination_kernel", "combine_kernel"]
    assert forward == ["mean"]
    launched.clear()
    grad = torch.ones_like(y)
    (grad_x, *_), backward = computed(lambda: torch.autograd.grad(y, [x, layer.weight, layer.bias], grad))
    assert grad_x.dtype == y.dtype == dtype
    assert launched == ["weighted_sums_kernel", "gradient_tables_kernel", "input_gradient_kernel"]
    assert backward == []


@pytest.mark.parametrize("channels", [16, 48, 64, 2048])
@pytest.mark.parametrize("components", [1, 4, 16])
def test_the_tables_of_every_shape(launched: list[str], components: int, channels: int) -> None:
    tables = [torch.rand(components, channels) for _ in range(6)]
    masses, centre = torch.rand(components), torch.rand(channels)
    partial, partial_masses = torch.rand(3, components, 2, channels), torch.rand(3, components)
    training_tables.density(centre, masses, *tables[:2], 1e-5, 0.5)
    training_tables.moments(partial_masses, partial, centre)
    normalizer = NormalizerTables(centre, *tables[:4], masses, *tables[4:])
    training_tables.combination(normalizer, 1e-5)
    training_tables.gradient_tables(partial, normalizer, 1e-5)
    for own, update_tau in ((None, False), ((tables[0], tables[1]), True)):
        training_tables.learned(
            (masses, *tables[:2]),
            (masses, *tables[2:4]),
            own,
            torch.tensor(0),
            momentum=0.1,
            update_tau=update_tau,
            least_mass=2.0,
            tau_floor=1e-4,
        )
    made = ["density_kernel", "moments_kernel", "combination_kernel", "gradient_tables_kernel"]
    assert launched == [*made, "learning_kernel", "learning_kernel"]
