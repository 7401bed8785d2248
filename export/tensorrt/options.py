"""What to build and what came of it: the words that the builders of both packages share."""

from __future__ import annotations

from dataclasses import dataclass

from cbn_deploy.runtime.engine_file import EngineRuntime, Implementation
from export.tensorrt.network import BuiltEngine

__all__ = ["DEFAULT_BATCH_SIZES", "RTX_COMPUTE_CAPABILITIES", "Build", "EngineOptions"]

DEFAULT_BATCH_SIZES = (1, 8, 32)
# GeForce RTX 30, 40 and 50. TensorRT-RTX has no float32 matrix product for the RTX 20 series (7.5).
RTX_COMPUTE_CAPABILITIES = ("8.6", "8.9", "12.0")


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """What kind of engine to build.

    Attributes:
        runtime: "tensorrt", built on the GPU that will run it, or "tensorrt-rtx", for GPUs by name on any machine.
        batch_sizes: smallest, optimal and largest batch; the engine is tuned for the optimal one.
        compute_capabilities: of the GPUs to build for with TensorRT-RTX, such as ("8.6", "8.9"); empty:
            :data:`RTX_COMPUTE_CAPABILITIES`.
    """

    runtime: EngineRuntime
    batch_sizes: tuple[int, int, int] = DEFAULT_BATCH_SIZES
    compute_capabilities: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        smallest, optimal, largest = self.batch_sizes
        if not 1 <= smallest <= optimal <= largest:
            raise ValueError(f"batch_sizes must be 1 <= smallest <= optimal <= largest, got {self.batch_sizes}")


@dataclass(frozen=True, kw_only=True)
class Build:
    """A built engine and what its description needs to say about it."""

    engine: BuiltEngine
    version: str
    implementation: Implementation
    compute_capabilities: tuple[str, ...]
