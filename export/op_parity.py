"""One node of the op against the paper's formula in float64, on the inputs that the node really reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from cbn_deploy.norm import compound_batch_norm_naive
from export.limits import LIMITS
from export.op_sites import OpSite
from export.parity_report import OpParity
from export.rounding import UNIT, allowed_error

__all__ = ["OpComparison"]

# What one float64 (pixels, M, D) tensor of the formula may take.
_FORMULA_BYTES = 16 * 2**20
# Pixels of one node compared per input; larger feature maps are sampled, which keeps the gate to seconds.
_PIXELS = 64
# One rounding of the result: half the distance between neighbours, relative and near zero; and the largest number.
_ROUNDING = {
    ir.DataType.FLOAT: (0.0, 0.0, (2 - 2.0**-23) * 2.0**127),
    ir.DataType.FLOAT16: (2.0**-11, 2.0**-25, 65504.0),
    ir.DataType.BFLOAT16: (2.0**-8, 2.0**-134, (2 - 2.0**-7) * 2.0**127),
}


class OpComparison:
    """Running comparison of one node: ``compare`` batch by batch, then ``result``."""

    def __init__(self, site: OpSite) -> None:
        self.site = site
        self._values = 0
        self._max_error = 0.0
        self._of_limit = 0.0
        self._worst_input = ""
        self._unit, self._smallest, self._largest = _ROUNDING[site.dtype]
        self._tables = [torch.from_numpy(table) for table in site.tables.float64()]

    def compare(
        self, values: Mapping[str, NDArray[np.floating]], kinds: Sequence[str], rng: np.random.Generator
    ) -> None:
        """Compare what the node read and wrote for a batch of inputs of these kinds."""
        site = self.site
        x = _pixels(values[site.x])
        chosen = np.sort(rng.permutation(x.shape[1])[:_PIXELS])
        residual = None if site.residual is None else _pixels(values[site.residual])[:, chosen]
        x, y = x[:, chosen], _pixels(values[site.y])[:, chosen]
        rows = max(1, _FORMULA_BYTES // (8 * x.shape[2] * len(site.tables.tau) * x.shape[1]))
        for start in range(0, len(x), rows):
            part = slice(start, start + rows)
            self._compare_rows(x[part], None if residual is None else residual[part], y[part], kinds[part])

    def _compare_rows(
        self, x: NDArray[np.float32], residual: NDArray[np.float32] | None, y: NDArray[np.float32], kinds: Sequence[str]
    ) -> None:
        tables, flat = self.site.tables, x.reshape(-1, x.shape[2]).astype(np.float64)
        tau, mean, var, scale, bias = self._tables
        with np.errstate(all="ignore"):
            expected = compound_batch_norm_naive(
                torch.from_numpy(flat), tau, mean, var, scale, bias, tables.epsilon, tables.density_scale
            ).numpy()
            allowed = allowed_error(flat, tables, LIMITS["op"].value)
            if residual is not None:
                expected = expected + residual.reshape(expected.shape)
                allowed = allowed + LIMITS["op"].value * UNIT * np.abs(expected)
            if self.site.form.relu:
                expected = np.maximum(expected, 0.0)
            allowed = allowed + self._unit * np.abs(expected) + self._smallest
            # The formula may be finite in float64 where the node's type cannot be.
            compared = np.isfinite(allowed) & (np.abs(expected) < self._largest)
            error = np.where(compared, np.abs(y.reshape(expected.shape) - expected), 0.0)
            error = np.where(np.isnan(error), np.inf, error)
            ratio = error / (allowed + np.finfo(np.float32).tiny)
            ratio = np.where(compared, ratio, 0.0)
        self._values += int(compared.sum())
        self._max_error = max(self._max_error, float(error.max()))
        worst = ratio.reshape(len(kinds), -1).max(1)
        if float(worst.max()) >= self._of_limit:
            self._of_limit, self._worst_input = float(worst.max()), kinds[int(worst.argmax())]

    def result(self) -> OpParity:
        """What was seen so far."""
        return OpParity(
            layer=self.site.layer,
            op_type=self.site.form.op_type,
            values=self._values,
            max_error=self._max_error,
            of_limit=self._of_limit,
            worst_input=self._worst_input,
        )


def _pixels(values: NDArray[np.floating]) -> NDArray[np.float32]:
    """(B, D, *spatial) of float32 or float16 -> (B, P, D) float32."""
    return np.moveaxis(values.reshape(*values.shape[:2], -1), 1, 2).astype(np.float32, copy=False)
