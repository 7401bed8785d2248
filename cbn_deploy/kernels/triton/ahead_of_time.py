"""Inference kernels as PTX, compiled without a GPU: what hosts without Python launch by its contract.

``python -m cbn_deploy.kernels.triton.ahead_of_time OUT`` writes the kernels of a layer's shape, with their contracts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import triton
import typer
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from cbn_deploy.atomic import atomic_write_bytes
from cbn_deploy.kernels.triton.contract import ITEM_SIZES, DataType, KernelSpec, LaunchContract
from cbn_deploy.kernels.triton.inference import forward_kernel
from cbn_deploy.kernels.triton.launch import forward_launch

__all__ = ["CompiledKernel", "compile_kernel", "layer_spec", "write_kernel"]

# PTX for compute capability 8.0 runs on 8.0 and everything newer. PTX 8.0 is the language of CUDA 12.0: any driver from
# 525 on takes it.
CAPABILITY = 80
PTX_VERSION = 80
_TRITON_TYPES: dict[DataType, str] = {"float32": "*fp32", "float16": "*fp16", "bfloat16": "*bf16"}
_ENTRY = re.compile(r"\.entry\s+(?P<name>\w+)\s*\((?P<parameters>[^)]*)\)", re.DOTALL)


@dataclass(frozen=True)
class CompiledKernel:
    """PTX text and how to launch it."""

    ptx: str
    contract: LaunchContract


def layer_spec(
    *,
    dtype: DataType,
    components: int,
    channels: int,
    pixels: int,
    channels_last: bool = False,
    residual: bool = False,
    relu: bool = False,
    posterior: bool = False,
    images: int | None = None,
) -> KernelSpec:
    """The kernel for a layer of this shape; it takes any number of images, and is cut for ``images`` where given."""
    launch = forward_launch(
        components=components,
        channels=channels,
        pixels=pixels,
        item_size=ITEM_SIZES[dtype],
        channels_last=channels_last,
        pixel_count=None if images is None else images * pixels,
    )
    return KernelSpec(
        dtype=dtype,
        components=components,
        channels_last=channels_last,
        residual=residual,
        relu=relu,
        posterior=posterior,
        launch=launch,
    )


def compile_kernel(spec: KernelSpec, capability: int = CAPABILITY) -> CompiledKernel:
    """Compile to PTX.

    Args:
        spec: which kernel.
        capability: lowest compute capability, ten times: 80 is 8.0.

    Raises:
        RuntimeError: Triton gave the kernel scratch memory or parameters that the contract does not know.
    """
    # Line information would put this machine's paths into the file.
    with triton.knobs.compilation.scope():
        triton.knobs.compilation.disable_line_info = True
        compiled = triton.compile(
            _source(spec),
            target=GPUTarget("cuda", capability, 32),
            options={"num_warps": spec.launch.warps, "enable_fp_fusion": True, "ptx_version": PTX_VERSION},
        )
    metadata = compiled.metadata
    if metadata.global_scratch_size or getattr(metadata, "profile_scratch_size", 0):
        raise RuntimeError(f"{spec.name}: the compiler asks for scratch memory")
    ptx = _without_scratch_parameters(compiled.asm["ptx"], len(spec.parameters))
    contract = LaunchContract(
        entry=metadata.name,
        target=f"sm_{capability}",
        ptx_version=f"{PTX_VERSION // 10}.{PTX_VERSION % 10}",
        spec=spec,
        threads=32 * spec.launch.warps,
        shared_bytes=metadata.shared,
    )
    return CompiledKernel(ptx, contract)


def write_kernel(kernel: CompiledKernel, folder: Path) -> Path:
    """Write NAME.ptx and NAME.json; returns the path of the PTX."""
    path = folder / f"{kernel.contract.spec.name}.ptx"
    atomic_write_bytes(path, kernel.ptx.encode())
    atomic_write_bytes(path.with_suffix(".json"), kernel.contract.to_json().encode())
    return path


def _source(spec: KernelSpec) -> ASTSource:
    constants: dict[str, object] = {
        "COMPONENTS": spec.components,
        "CHANNELS_LAST": spec.channels_last,
        "RESIDUAL": spec.residual,
        "RELU": spec.relu,
        "POSTERIOR": spec.posterior,
        **spec.launch.constants(),
    }
    types = {"tables_ptr": "*fp32", "posterior_ptr": "*fp32", "pixel_count": "i32", "channels": "i32", "pixels": "i32"}
    types |= dict.fromkeys(("x_ptr", "residual_ptr", "y_ptr"), _TRITON_TYPES[spec.dtype])
    absent = [name for name, there in (("residual_ptr", spec.residual), ("posterior_ptr", spec.posterior)) if not there]
    constants |= dict.fromkeys(absent)
    signature = {name: "constexpr" if name in constants else types[name] for name in forward_kernel.arg_names}
    aligned = {
        (index,): [["tt.divisibility", 16]]
        for index, name in enumerate(forward_kernel.arg_names)
        if signature[name].startswith("*")
    }
    return ASTSource(forward_kernel, signature, constants, aligned)


def _without_scratch_parameters(ptx: str, count: int) -> str:
    """Keep the first ``count`` parameters: Triton appends pointers to scratch memory, whether used or not."""
    entry = _ENTRY.search(ptx)
    if entry is None:
        raise RuntimeError("the compiled PTX has no entry point")
    parameters = entry["parameters"].split(",")
    for parameter in parameters[count:]:
        name = parameter.split()[-1]
        if re.search(rf"\b{name}\b", ptx[entry.end() :]):
            raise RuntimeError(f"the compiled kernel reads the unknown parameter {name}")
    kept = ",".join(parameters[:count]).rstrip() + "\n"
    return ptx[: entry.start("parameters")] + kept + ptx[entry.end("parameters") :]


def main(
    out: Annotated[Path, typer.Argument(help="Folder to write to.")],
    channels: Annotated[int, typer.Option(help="Channels D of the layer.")],
    pixels: Annotated[int, typer.Option(help="Height times width of the layer.")],
    components: Annotated[int, typer.Option(help="Components M.")] = 4,
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16.")] = "float32",
    channels_last: Annotated[bool, typer.Option(help="Channels are contiguous.")] = False,
) -> None:
    """Write the PTX of the three forms of a layer and its launch contracts (no GPU needed)."""
    types: dict[str, DataType] = {str(name): name for name in ITEM_SIZES}
    if dtype not in types:
        raise typer.BadParameter(f"choose one of {', '.join(types)}", param_hint="--dtype")
    out.mkdir(parents=True, exist_ok=True)
    for residual, relu in ((False, False), (False, True), (True, True)):
        spec = layer_spec(
            dtype=types[dtype],
            components=components,
            channels=channels,
            pixels=pixels,
            channels_last=channels_last,
            residual=residual,
            relu=relu,
        )
        typer.echo(write_kernel(compile_kernel(spec), out))


if __name__ == "__main__":
    typer.run(main)
