"""What lowering the precision did to a model, as plain data: printed by the command line, stored in the file."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from export.parity_report import OpParity, plain
from export.precision.accuracy import AccuracyReport

__all__ = ["CalibrationRecord", "EmulationRecord", "PrecisionReport"]


@dataclass(frozen=True, kw_only=True)
class CalibrationRecord:
    """Which images set the ranges of the activations.

    Attributes:
        source: in words, such as "training images of digits-lt" or the folder's name.
        images: how many were used.
        in_test_set: how many were left out because the test set has the same image.
        sha256: of the sorted SHA-256 of their pixels: two calibrations with the same images have the same.
        method: how ranges follow from activations.
    """

    source: str
    images: int
    in_test_set: int
    sha256: str
    method: str


@dataclass(frozen=True, kw_only=True)
class EmulationRecord:
    """What was judged in the place of a file that onnxruntime cannot run on a CPU: its graph, equal but for types.

    Attributes:
        arithmetic: of the emulation.
        rounded: how many tensors it rounds, which are all that the file has in bfloat16 but its weights.
    """

    arithmetic: str
    rounded: int


@dataclass(frozen=True, kw_only=True)
class PrecisionReport:
    """What stands in a file of lower precision in the place of a parity report.

    Attributes:
        precision: "int8", "fp16" or "bf16".
        runtime: what ran the file, or its emulation, such as "onnxruntime 1.32.0".
        kernel_path: "fused" if the accuracy was measured with the native library's kernels, "portable" if with the
            op's standard-ops bodies.
        emulation: ``None`` if the file itself was judged.
        calibration: ``None`` but for int8.
        accuracy: the file against the float32 checkpoint on the test set.
        test_set_doubt: why the test images may be those of the training; ``None`` if nothing speaks for it.
        inputs: how many inputs every node of the op was compared on, ``real_images`` of them real.
        real_images: see ``inputs``.
        ops: one row a node of the op.
    """

    precision: str
    runtime: str
    kernel_path: str
    emulation: EmulationRecord | None
    calibration: CalibrationRecord | None
    accuracy: AccuracyReport
    test_set_doubt: str | None
    inputs: int
    real_images: int
    ops: tuple[OpParity, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, numbers to four significant digits."""
        return {key: plain(value) for key, value in dataclasses.asdict(self).items()}
