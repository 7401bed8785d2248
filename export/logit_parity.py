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
        eager32: (n, K) by the checkpoint in float32.
        eager64: (n, K) by the checkpoint in float64.
    """

    kinds: Kinds
    exported: Array
    single: Array
    single_indices: NDArray[np.int64]
    eager32: Array
    eager64: Array

    @property
    def finite(self) -> Mask:
        """(n,) inputs on which the checkpoint itself is finite; only these are compared."""
        return np.asarray(np.isfinite(np.concatenate([self.eager32, self.eager64], axis=1)).all(1))

    def limits(self) -> Array:
        """(n,) each input's limit by :data:`export.limits.LIMITS`; NaN where the checkpoint is not finite."""
        limits = np.full(len(self.kinds), np.nan)
        for kind in np.unique(self.kinds):
            members = np.flatnonzero((self.kinds == kind) & self.finite)
            if len(members) == 0:
                continue
            size = np.maximum(1.0, np.abs(self.eager64[members]).max(1))
            rounding = (np.abs(self.eager32[members] - self.eager64[members]).max(1) / size).max()
            limits[members] = size * max(LIMITS["logits"].value, LIMITS["rounding"].value * rounding)
        return limits

    def rows(self) -> tuple[LogitParity, ...]:
        """One row a reference and group of inputs."""
        real = self.kinds == REAL
        groups = (
            ("real images", np.flatnonzero(real), self.exported[real]),
            ("extremes", np.flatnonzero(~real), self.exported[~real]),
            ("batch of one", self.single_indices, self.single),
        )
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

    def top1(self) -> tuple[float, int]:
        """Fraction of inputs whose top-1 is eager float32's (a tie agrees), and how many ties fell differently."""
        members = np.flatnonzero(self.finite)
        if len(members) == 0:
            return 0.0, 0
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
