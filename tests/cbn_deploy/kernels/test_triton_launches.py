"""Every launch as Python makes it: Triton binds its arguments and compiles what compute capability 9.0 would run.

The driver is asked for nothing but its device's name, so a stand-in can give it; the launch itself is left out.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not installed")

from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import KernelInterface

from cbn_deploy.kernels import training as operators
from cbn_deploy.kernels.memory_format import dense
from cbn_deploy.kernels.triton import operator, training
from cbn_deploy.norm import CompoundBatchNorm2d, NormConfig, layers
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
    for module in (operator, training):
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


@pytest.mark.parametrize(
    ("channels", "dtype", "form"), [(48, torch.float32, FIRST), (48, torch.bfloat16, LAST), (520, torch.float16, FIRST)]
)
def test_a_training_step(
    launched: list[str],
    monkeypatch: pytest.MonkeyPatch,
    channels: int,
    dtype: torch.dtype,
    form: torch.memory_format,
) -> None:
    monkeypatch.setattr(operators.cuda, "training_passes", lambda *_: training)
    monkeypatch.setattr(layers, "readable", dense)
    layer = CompoundBatchNorm2d(channels, NormConfig(components=3)).train()
    x = torch.randn(2, channels, 5, 4).to(dtype).contiguous(memory_format=form).requires_grad_()
    y = layer(x)
    y.backward(torch.ones_like(y))
    assert x.grad is not None
    assert x.grad.dtype == y.dtype == dtype
    forward = ["expectation_kernel", *(["weighted_sums_kernel"] if channels > 512 else []), "combine_kernel"]
    assert launched == [*forward, "weighted_sums_kernel", "input_gradient_kernel"]
