"""Where the plugin's kernels come from: Triton, compiled ahead of time to PTX."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

from cbn_deploy.errors import RuntimeUnavailableError

if TYPE_CHECKING:
    from cbn_deploy.kernels.triton.ahead_of_time import CompiledKernel
    from cbn_deploy.kernels.triton.contract import DataType

__all__ = ["CompileLayer", "load_compiler"]


class CompileLayer(Protocol):
    """Compiles the kernel of one layer; see :func:`cbn_deploy.kernels.triton.ahead_of_time.layer_spec`."""

    def __call__(
        self,
        *,
        dtype: DataType,
        components: int,
        channels: int,
        pixels: int,
        channels_last: bool,
        residual: bool,
        relu: bool,
        posterior: bool,
        images: int,
    ) -> CompiledKernel:
        """Compile."""


def load_compiler() -> CompileLayer:
    """The compiler; layers of one kind share one compilation.

    Raises:
        RuntimeUnavailableError: Triton is not installed.
    """
    try:
        from cbn_deploy.kernels.triton.ahead_of_time import compile_kernel, layer_spec, named_by_spec
    except ImportError as error:
        raise RuntimeUnavailableError(
            f"The plugin's kernels are compiled by Triton, which is not installed ({error}); install it with: "
            "pip install triton, or build the portable form of the layers: cbn-export --inline."
        ) from error
    compiled = cache(compile_kernel)

    def compile_layer(**layer: Any) -> CompiledKernel:
        return named_by_spec(compiled(layer_spec(**layer)))

    return compile_layer
