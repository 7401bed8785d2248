"""The split path's launches as Python makes them: Triton binds and compiles them for compute capability 9.0, no GPU."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

import triton
from triton.runtime import driver
from triton.runtime.jit import KernelInterface

from cbn_deploy.kernels import cuda
from cbn_deploy.kernels.split_groups import GroupGradients
from cbn_deploy.kernels.triton import split
from cbn_deploy.norm import NormConfig, SplitBatchNorm2d, split_path
from tests.cbn_deploy.kernels.test_triton_launches import Hopper

FIRST, LAST = torch.contiguous_format, torch.channels_last
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
# Which of the two a release of Triton writes PTX for changes; the newer one reads both.
ASSEMBLERS = [path for name in ("ptxas-blackwell", "ptxas") if (path := TOOLS / name).exists()]


@dataclass
class Launched:
    """A kernel that was bound and compiled."""

    name: str
    ptx: str


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Launched]:
    found: list[Launched] = []

    def bind(
        kernel: KernelInterface, grid: tuple[int, ...], *arguments: object, warps: int, **constants: object
    ) -> None:
        compiled = kernel.warmup(*arguments, grid=grid, **constants, num_warps=warps, enable_fp_fusion=True)
        assert compiled.metadata.shared <= 48 * 1024
        found.append(Launched(kernel.fn.__name__, compiled.asm["ptx"]))

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(split, "start", bind)
    monkeypatch.setattr(driver, "_active", Hopper())
    return found


@pytest.mark.parametrize(
    ("channels", "dtype", "form"), [(48, torch.float32, FIRST), (48, torch.bfloat16, LAST), (3, torch.float16, FIRST)]
)
def test_a_training_step_is_three_launches_and_three_back(
    launched: list[Launched],
    monkeypatch: pytest.MonkeyPatch,
    channels: int,
    dtype: torch.dtype,
    form: torch.memory_format,
) -> None:
    monkeypatch.setattr(cuda, "split_passes", lambda *_: split)
    layer = SplitBatchNorm2d(channels, torch.arange(3), NormConfig(components=3)).train()
    x = torch.randn(3, channels, 5, 4).to(dtype).contiguous(memory_format=form).requires_grad_()
    with split_path(layer, torch.arange(3)):
        y = layer(x)
    y.backward(torch.ones_like(y))
    assert x.grad is not None
    assert x.grad.dtype == y.dtype == dtype
    assert [kernel.name for kernel in launched] == [
        "image_moments_kernel",
        "group_moments_kernel",
        "split_normalize_kernel",
        "gradient_sums_kernel",
        "group_gradients_kernel",
        "split_gradient_kernel",
    ]


@pytest.mark.parametrize("channels_last", [False, True], ids=["channels first", "channels last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("channels", "pixels"), [(16, 1024), (32, 256), (64, 64), (64, 3136), (256, 784), (2048, 49)])
def test_the_passes_over_pixels_compile_without_spills(
    launched: list[Launched], tmp_path: Path, channels: int, pixels: int, dtype: torch.dtype, channels_last: bool
) -> None:
    if not ASSEMBLERS:
        pytest.skip("this Triton carries no ptxas")
    x = torch.zeros(2, channels, pixels, dtype=dtype)
    x = x.movedim(1, -1).contiguous().movedim(-1, 1) if channels_last else x
    groups, table = torch.tensor([1, 0]), torch.zeros(2, channels)
    split.moments(x)
    split.normalize(x, groups, table, table, table, table, 1e-5, x)
    split.gradient_sums(x, x, groups, table)
    split.input_gradient(x, x, groups, table, GroupGradients(*[table] * 5), x)
    for kernel in launched:
        if channels_last or pixels % 4 == 0:
            # The layout is the one that memory has.
            assert re.search(r"ld\.global\S*\.v[24]\.b32", kernel.ptx)
        path = tmp_path / "kernel.ptx"
        path.write_text(kernel.ptx)
        done = subprocess.run(
            [ASSEMBLERS[0], "-v", "-arch=sm_90a", path, "-o", tmp_path / "kernel.cubin"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert "0 bytes spill stores, 0 bytes spill loads" in done.stderr, kernel.name
