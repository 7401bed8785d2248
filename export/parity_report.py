"""What the parity gate measured, as plain data: printed by the command line, stored in the file."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

__all__ = ["LogitParity", "OpParity", "ParityReport", "plain"]


@dataclass(frozen=True, kw_only=True)
class OpParity:
    """One node against the paper's formula in float64 on the same input.

    Attributes:
        layer: the layer's name.
        op_type: which form of the op.
        values: how many output values were compared.
        max_error: largest absolute difference.
        of_limit: largest difference as a fraction of what the limit allows for that value; above 1 fails.
        worst_input: the kind of input that difference was seen on.
    """

    layer: str
    op_type: str
    values: int
    max_error: float
    of_limit: float
    worst_input: str


@dataclass(frozen=True, kw_only=True)
class LogitParity:
    """The model's logits against one reference on one group of inputs.

    Attributes:
        reference: "eager float32", or "eager float64".
        group: "real images", "extremes", or "batch of one" (some of both, run one by one) or "all, native kernels"
            (by the native library, where it is installed; the other groups run the op's standard-ops bodies).
        inputs: how many.
        max_error: largest absolute difference.
        of_limit: largest difference as a fraction of that input's limit; above 1 fails.
        worst_input: the kind of input that difference was seen on.
    """

    reference: str
    group: str
    inputs: int
    max_error: float
    of_limit: float
    worst_input: str


@dataclass(frozen=True, kw_only=True)
class ParityReport:
    """The whole gate.

    Attributes:
        runtime: what ran the file, such as "onnxruntime 1.32.0".
        inputs: how many inputs, of which ``real_images`` are real.
        real_images: see ``inputs``.
        seed: of the extremes.
        top1_agreement: fraction of inputs whose top-1 is eager float32's (a tie counts as agreement); 1 or no file.
        ties: real images on which the top-1 differs between two classes closer than twice the limit.
        undecided_extremes: the same of the extremes, whose limit may be wider.
        eager_rounding_real: largest error of eager float32 against eager float64 on real images, in units of
            max(1, largest |logit|): what the network itself makes of float32.
        eager_rounding_extremes: the same on extremes; above a quarter of the limit on logits it widens theirs.
        overflows: extremes on which eager float32 itself is not finite; they are not compared.
        rounding_allowed: whether the limit on the logits of real images was widened, too: for a network that amplifies
            float32's own rounding towards it, exported with ``allow_rounding``.
        logits: one row a reference and group.
        ops: one row a node of the op.
        limits: name -> value of export/limits.py.
    """

    runtime: str
    inputs: int
    real_images: int
    seed: int
    top1_agreement: float
    ties: int
    undecided_extremes: int
    eager_rounding_real: float
    eager_rounding_extremes: float
    overflows: int
    rounding_allowed: bool
    logits: tuple[LogitParity, ...]
    ops: tuple[OpParity, ...]
    limits: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, numbers to four significant digits."""
        return {key: plain(value) for key, value in dataclasses.asdict(self).items()}


def plain(value: Any) -> Any:
    """Plain JSON types of a report's values, numbers to four significant digits."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return [plain(entry) for entry in value]
    return value
