"""The exported model's logits against the checkpoint's, in float32 and in float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from export.inputs import REAL
from export.limits import LIMITS
from export.parity_report import LogitParity

__all__ = ["LogitComparison"]

Array = NDArray[np.float64]
Kinds = NDArray[np.str_]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class LogitComparison:
    """Everything that was computed, in float64; row n belongs to input n.

    Attributes:
        kinds: (n,) kind of each input.
        exported: (n, K) by the exported file, in batches.
        single: (m, K) by the exported file, one by one, for the inputs ``single_indices``.
        single_indices: (m,).
        fused: (n, K) by the exported file with the native library registered; ``None`` where there is none, or no node
            for it to run.
        eager32: (n, K) by the checkpoint in float32.
        eager64: (n, K) by the checkpoint in float64.
        allow_rounding: widen the limit of real images, too, by what the network makes of float32.
    """

    kinds: Kinds
    exported: Array
    single: Array
    single_indices: NDArray[np.int64]
    fused: Array | None = None
    eager32: Array
    eager64: Array
    allow_rounding: bool = False

    @property
    def finite(self) -> Mask:
        """(n,) inputs on which the checkpoint itself is finite; only these are compared."""
        return np.asarray(np.isfinite(np.concatenate([self.eager32, self.eager64], axis=1)).all(1))

    @property
    def real(self) -> Mask:
        """(n,) which inputs are real images."""
        return np.asarray(self.kinds == REAL)

    def rounding(self, group: Mask) -> float:
        """Largest error of eager float32 against eager float64 in ``group``, in units of max(1, largest |logit|)."""
        members = np.flatnonzero(group & self.finite)
        if len(members) == 0:
            return 0.0
        error = np.abs(self.eager32[members] - self.eager64[members]).max(1)
        return float((error / self._size()[members]).max())

    def limits(self) -> Array:
        """(n,) each input's limit by :data:`export.limits.LIMITS`; NaN where the checkpoint is not finite."""
        real = self._widened(self.real) if self.allow_rounding else LIMITS["logits"].value
        return np.where(self.finite, self._size() * np.where(self.real, real, self._widened(~self.real)), np.nan)

    def _widened(self, group: Mask) -> float:
        return max(LIMITS["logits"].value, LIMITS["rounding"].value * self.rounding(group))

    def _size(self) -> Array:
        size: Array = np.maximum(1.0, np.abs(self.eager64).max(1))
        return size

    def rows(self) -> tuple[LogitParity, ...]:
        """One row a reference and group of inputs."""
        real = self.real
        groups = [
            ("real images", np.flatnonzero(real), self.exported[real]),
            ("extremes", np.flatnonzero(~real), self.exported[~real]),
            ("batch of one", self.single_indices, self.single),
        ]
        if self.fused is not None:
            groups.append(("all, native kernels", np.arange(len(self.fused)), self.fused))
        limits, finite = self.limits(), self.finite
        rows = []
        for reference, expected in (("eager float32", self.eager32), ("eager float64", self.eager64)):
            for group, members, found in groups:
                used = finite[members]
                if used.any():
                    chosen = members[used]
                    error = np.abs(found[used] - expected[chosen]).max(1)
                    rows.append(_row(reference, group, error, limits[chosen], self.kinds[chosen]))
        return tuple(rows)

    def top1(self, group: Mask) -> tuple[float, int]:
        """Fraction of ``group`` whose top-1 is eager float32's (a tie agrees), and how many ties fell differently."""
        members = np.flatnonzero(group & self.finite)
        if len(members) == 0:
            return 1.0, 0
        found, exact = self.exported[members].argmax(1), self.eager64[members]
        differs = found != self.eager32[members].argmax(1)
        margin = exact.max(1) - exact[np.arange(len(members)), found]
        tie = differs & (margin <= LIMITS["tie"].value * self.limits()[members])
        return float((~differs | tie).mean()), int(tie.sum())


def _row(reference: str, group: str, error: Array, limits: Array, kinds: Kinds) -> LogitParity:
    error = np.where(np.isnan(error), np.inf, error)
    ratio = error / limits
    return LogitParity(
        reference=reference,
        group=group,
        inputs=len(error),
        max_error=float(error.max()),
        of_limit=float(ratio.max()),
        worst_input=str(kinds[ratio.argmax()]),
    )
