"""Inference kernels as PTX, compiled without a GPU: what hosts without Python launch by its contract.

``python -m cbn_deploy.kernels.triton.ahead_of_time OUT`` writes the kernels of a layer's shape, with their contracts.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from cbn_deploy.atomic import atomic_write_bytes
from cbn_deploy.kernels.triton.contract import ITEM_SIZES, DataType, KernelSpec, LaunchContract
from cbn_deploy.kernels.triton.inference import forward_kernel
from cbn_deploy.kernels.triton.launch import forward_launch

__all__ = ["CompiledKernel", "compile_kernel", "layer_spec", "named_by_spec", "write_kernel"]

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


def named_by_spec(kernel: CompiledKernel) -> CompiledKernel:
    """The kernel under a name of its own, which profilers show; Triton calls all of them alike."""
    name = kernel.contract.spec.name
    ptx = re.sub(rf"\b{kernel.contract.entry}\b", name, kernel.ptx)
    return dataclasses.replace(kernel, ptx=ptx, contract=dataclasses.replace(kernel.contract, entry=name))


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


def main() -> None:
    """Write the PTX of the three forms of a layer and its launch contracts."""
    parser = argparse.ArgumentParser(description="Write the PTX of a layer's three forms and how to launch it.")
    parser.add_argument("out", type=Path, help="folder to write to")
    parser.add_argument("--channels", type=int, required=True, help="channels D of the layer")
    parser.add_argument("--pixels", type=int, required=True, help="height times width of the layer")
    parser.add_argument("--components", type=int, default=4, help="components M (default 4)")
    parser.add_argument("--dtype", choices=ITEM_SIZES, default="float32")
    parser.add_argument("--channels-last", action="store_true", help="channels are contiguous")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for residual, relu in ((False, False), (False, True), (True, True)):
        spec = layer_spec(
            dtype=arguments.dtype,
            components=arguments.components,
            channels=arguments.channels,
            pixels=arguments.pixels,
            channels_last=arguments.channels_last,
            residual=residual,
            relu=relu,
        )
        sys.stdout.write(f"{write_kernel(compile_kernel(spec), arguments.out)}\n")


if __name__ == "__main__":
    main()
