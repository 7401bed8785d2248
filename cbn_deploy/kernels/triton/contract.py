"""The launch contract of a compiled inference kernel: everything that whoever launches it must know, in one place.

It needs no Triton to read: a TensorRT plugin, an onnxruntime op or any other host of the PTX goes by it alone.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from cbn_deploy.kernels.triton.launch import ForwardLaunch

__all__ = ["DataType", "KernelSpec", "LaunchContract", "Parameter"]

DataType = Literal["float32", "float16", "bfloat16"]
ITEM_SIZES: dict[DataType, int] = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True, kw_only=True)
class KernelSpec:
    """Which kernel.

    Attributes:
        dtype: of x, residual and y.
        components: M.
        channels_last: x, residual and y have their channels contiguous, else their pixels.
        residual: a second data input is added to the result.
        relu: the result goes through max(0, .).
        posterior: there is a second output, float32 (images, M, pixels).
        launch: block sizes and warps.
    """

    dtype: DataType
    components: int
    channels_last: bool
    residual: bool
    relu: bool
    posterior: bool
    launch: ForwardLaunch

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """The kernel's parameters in order."""
        data, table = f"{self.dtype}*", "float32*"
        return (
            Parameter("x", data),
            *([Parameter("residual", data)] if self.residual else []),
            Parameter("tables", table),
            Parameter("pixel_count", "int32"),
            Parameter("channels", "int32"),
            Parameter("pixels", "int32"),
            Parameter("y", data),
            *([Parameter("posterior", table)] if self.posterior else []),
        )

    @property
    def name(self) -> str:
        """A file name's worth of all of the above."""
        parts = ["cbn", self.dtype, f"m{self.components}", "channels_last" if self.channels_last else "channels_first"]
        parts += [flag for flag in ("residual", "relu", "posterior") if getattr(self, flag)]
        cut = self.launch
        resident = "resident" if cut.resident else "streamed"
        parts += [f"{cut.chunks}x{cut.block_channels}{'' if cut.full else 'masked'}", f"p{cut.block_pixels}"]
        return "_".join([*parts, f"v{cut.vector}", f"w{cut.warps}", resident])


@dataclass(frozen=True)
class Parameter:
    """One kernel parameter.

    Attributes:
        name: ``x``, ``residual``, ``tables``, ``pixel_count``, ``channels``, ``pixels``, ``y`` or ``posterior``.
        type: ``int32``, or the element type followed by ``*``: a device pointer, 16-byte aligned.
    """

    name: str
    type: str


@dataclass(frozen=True, kw_only=True)
class LaunchContract:
    """How to launch a kernel: ``grid = ceil(pixel_count / block_pixels)``, one-dimensional, and nothing else to set up.

    ``pixel_count`` is images * ``pixels``; ``pixels`` the product of the spatial axes; ``tables`` what
    :mod:`cbn_deploy.kernels.triton.tables` describes. No scratch memory; no parameter follows the last.
    y must not overlap x or residual.

    Attributes:
        entry: name of the PTX's entry point.
        target: lowest GPU architecture, for example ``sm_80``; later ones run the PTX too.
        ptx_version: of the PTX, for example ``8.0``: a driver older than it refuses the file.
        spec: which kernel.
        threads: of a block, (threads, 1, 1).
        shared_bytes: dynamic shared memory of a block.
    """

    entry: str
    target: str
    ptx_version: str
    spec: KernelSpec
    threads: int
    shared_bytes: int

    @property
    def most_channels(self) -> int:
        """The kernel takes up to this many channels; exactly this many if ``spec.launch.full``."""
        return self.spec.launch.chunks * self.spec.launch.block_channels

    def to_json(self) -> str:
        """As JSON; :meth:`from_json` reads it. ``parameters`` and ``most_channels`` are written for other readers."""
        derived = {"parameters": [asdict(p) for p in self.spec.parameters], "most_channels": self.most_channels}
        return json.dumps({**asdict(self), **derived}, indent=2)

    @classmethod
    def from_json(cls, text: str) -> LaunchContract:
        """Read what :meth:`to_json` wrote."""
        values: dict[str, Any] = json.loads(text)
        spec = values["spec"]
        launch = ForwardLaunch(**spec["launch"])
        own = {field.name: values[field.name] for field in fields(cls) if field.name != "spec"}
        return cls(spec=KernelSpec(**{**spec, "launch": launch}), **own)
