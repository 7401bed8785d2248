"""The training kernels compile without a GPU, for the layers of ResNet-50, and keep their sums in registers."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from cbn_deploy.kernels.triton import training_kernels
from cbn_deploy.kernels.triton.launch import training_launch

STORED = {"a_ptr", "g_ptr", "x_ptr", "y_ptr", "result_ptr"}
ASSEMBLER = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"


@pytest.mark.parametrize("kernel", training_kernels.__all__)
@pytest.mark.parametrize(
    ("channels", "pixels", "channels_last"), [(64, 3136, False), (2048, 49, False), (64, 3136, True), (512, 49, True)]
)
def test_it_compiles_without_spills(
    kernel: str, channels: int, pixels: int, channels_last: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not ASSEMBLER.exists():
        pytest.skip("this Triton carries no ptxas")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))
    launch = training_launch(
        components=4,
        channels=channels,
        pixels=pixels,
        item_size=2,
        channels_last=channels_last,
        by_channel=kernel in ("combine_kernel", "weighted_sums_kernel"),
        sums=kernel in ("expectation_kernel", "weighted_sums_kernel"),
    )
    function = getattr(training_kernels, kernel)
    constants = {
        "COMPONENTS": 4,
        "PIECES": 8,
        "CHANNELS_LAST": channels_last,
        "VECTOR": launch.vector,
        "BLOCK_D": launch.block_channels,
        "BLOCK_P": launch.block_pixels,
        "CHUNKS": launch.chunks,
        "FOLD": launch.fold,
        "MOMENTS": launch.chunks == 1,
        "GRADIENT": True,
    }
    constants = {name: value for name, value in constants.items() if name in function.arg_names}
    if not constants.get("MOMENTS", True):
        constants["partial_ptr"] = None
    signature, aligned = {}, {}
    for index, name in enumerate(function.arg_names):
        pointer = "*bf16" if name in STORED else "*fp32"
        signature[name] = "constexpr" if name in constants else pointer if name.endswith("_ptr") else "i32"
        if signature[name].startswith("*"):
            aligned[(index,)] = [["tt.divisibility", 16]]
    compiled = triton.compile(
        ASTSource(function, signature, constants, aligned),
        target=GPUTarget("cuda", 80, 32),
        options={"num_warps": launch.warps, "enable_fp_fusion": True},
    )
    ptx = compiled.asm["ptx"]
    if launch.vector > 1:
        assert re.search(r"ld\.global\S*\.v[24]\.b32", ptx)  # the layout is the one that memory has
    path = tmp_path / "kernel.ptx"
    path.write_text(ptx)
    done = subprocess.run(
        [ASSEMBLER, "-v", "-arch=sm_90", path, "-o", tmp_path / "kernel.cubin"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "0 bytes spill stores, 0 bytes spill loads" in done.stderr
