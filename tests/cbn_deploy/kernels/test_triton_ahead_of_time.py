"""PTX compiled without a GPU, held to its launch contract by reading the PTX."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

from cbn_deploy.kernels.triton import ahead_of_time
from cbn_deploy.kernels.triton.ahead_of_time import compile_kernel, layer_spec, write_kernel
from cbn_deploy.kernels.triton.contract import DataType, LaunchContract

PTX_TYPES = {"int32": "u32"}
LAYERS = {
    "narrow": {"channels": 16, "pixels": 1024},
    "not a power of two": {"channels": 24, "pixels": 49},
    "wide": {"channels": 2048, "pixels": 49},
    "few pixels": {"channels": 64, "pixels": 196, "images": 1},
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "triton"))


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_the_ptx_is_what_the_contract_says(layer: str, dtype: DataType, channels_last: bool) -> None:
    shape = LAYERS[layer]
    spec = layer_spec(dtype=dtype, components=3, channels_last=channels_last, residual=True, relu=True, **shape)
    kernel = compile_kernel(spec)
    contract, ptx = kernel.contract, kernel.ptx
    entry = re.search(r"\.visible \.entry (\w+)\((.*?)\)\s*(\.\w+ [\d, ]+)?", ptx, re.DOTALL)
    assert entry is not None
    assert entry[1] == contract.entry
    declared = re.findall(r"\.param \.(\w+)", entry[2])
    assert declared == [PTX_TYPES.get(parameter.type, "u64") for parameter in spec.parameters]
    threads = re.search(r"\.reqntid (\d+)", ptx)
    assert threads is not None
    assert int(threads[1]) == contract.threads == 32 * spec.launch.warps
    assert f".target {contract.target}" in ptx
    assert f".version {contract.ptx_version}" in ptx
    assert contract.shared_bytes <= 48 * 1024  # more would have to be asked for before the launch
    assert (".shared" in ptx) == (contract.shared_bytes > 0)
    assert contract.most_channels >= shape["channels"]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_memory_is_read_and_written_in_16_byte_vectors(dtype: DataType) -> None:
    spec = layer_spec(dtype=dtype, components=4, channels=64, pixels=3136, relu=True)
    ptx = compile_kernel(spec).ptx
    elements = spec.launch.chunks * spec.launch.block_channels * spec.launch.block_pixels // (32 * spec.launch.warps)
    vectors = elements * (4 if dtype == "float32" else 2) // 16
    assert len(re.findall(r"ld\.global\S*\.v4\.b32", ptx)) == vectors
    assert len(re.findall(r"st\.global\S*\.v4\.b32", ptx)) == vectors


def test_arithmetic_is_float32_without_matrix_instructions() -> None:
    ptx = compile_kernel(layer_spec(dtype="float16", components=4, channels=64, pixels=3136)).ptx
    assert "mma" not in ptx
    assert ".tf32" not in ptx
    assert not re.search(r"\b(fma|add|mul)\.(rn\.)?b?f16", ptx)


@pytest.mark.parametrize(("dtype", "instruction"), [("float16", "cvt.rn.f16"), ("bfloat16", "cvt.rn.bf16")])
def test_results_are_rounded_to_nearest(dtype: DataType, instruction: str) -> None:
    ptx = compile_kernel(layer_spec(dtype=dtype, components=2, channels=16, pixels=64)).ptx
    assert instruction in ptx
    assert "cvt.rz" not in ptx


def test_only_what_a_form_needs_is_a_parameter() -> None:
    bare = layer_spec(dtype="float32", components=1, channels=8, pixels=4)
    full = layer_spec(dtype="float32", components=1, channels=8, pixels=4, residual=True, posterior=True)
    names = [parameter.name for parameter in full.parameters]
    assert names == ["x", "residual", "tables", "pixel_count", "channels", "pixels", "y", "posterior"]
    assert [p.name for p in bare.parameters] == [n for n in names if n not in ("residual", "posterior")]
    for spec in (bare, full):
        assert compile_kernel(spec).ptx.count(".param .") == len(spec.parameters)


def test_the_ptx_says_nothing_of_the_machine_that_made_it() -> None:
    ptx = compile_kernel(layer_spec(dtype="float32", components=2, channels=8, pixels=4)).ptx
    assert str(Path(ahead_of_time.__file__).parents[3]) not in ptx
    assert ".loc" not in ptx


@pytest.mark.parametrize(
    "layer",
    [
        {"channels": 256, "pixels": 784},
        {"channels": 512, "pixels": 784, "channels_last": True},
        {"channels": 512, "pixels": 49, "channels_last": True, "images": 64},
        {"channels": 2048, "pixels": 49},
    ],
)
def test_the_assembler_takes_the_ptx_without_a_spill(layer: dict[str, Any], tmp_path: Path) -> None:
    triton = pytest.importorskip("triton")
    assembler = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    if not assembler.exists():
        pytest.skip("this Triton carries no ptxas")
    kernel = compile_kernel(layer_spec(dtype="bfloat16", components=4, relu=True, **layer))
    path = write_kernel(kernel, tmp_path)
    for capability in ("sm_80", "sm_90"):
        done = subprocess.run(
            [assembler, "-v", f"-arch={capability}", path, "-o", tmp_path / "kernel.cubin"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert "0 bytes spill stores, 0 bytes spill loads" in done.stderr


def test_the_contract_survives_json(tmp_path: Path) -> None:
    kernel = compile_kernel(layer_spec(dtype="float32", components=2, channels=8, pixels=4, posterior=True))
    path = write_kernel(kernel, tmp_path)
    assert LaunchContract.from_json(path.with_suffix(".json").read_text()) == kernel.contract
    assert path.read_text() == kernel.ptx


def test_scratch_parameters_that_are_used_are_refused() -> None:
    ptx = ".visible .entry k(\n\t.param .u64 k_param_0,\n\t.param .u64 k_param_1\n)\n{ld.param.u64 %rd1, [k_param_1];}"
    with pytest.raises(RuntimeError, match="reads the unknown parameter k_param_1"):
        ahead_of_time._without_scratch_parameters(ptx, 1)
    unused = ptx.replace("[k_param_1]", "[k_param_0]")
    assert "k_param_1" not in ahead_of_time._without_scratch_parameters(unused, 1)
