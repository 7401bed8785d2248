"""First principles of how exact the op can be in float32: the error model behind the parity gate's limit.

With ``u = 2^-24`` and the tables of docs/op.md, a component's logit is a sum of terms whose magnitudes add up to

    G_j = s/2 sum_d (|p_j - p_0| c^2 + 2 |delta_j c| p_j + delta_j^2 p_j + |log(v_j / v_0)|) + |log tau_j| + 1

so it carries an error of ``k u G_j``, ``k`` a modest constant. Posteriors then lie in the interval that the softmax of
the perturbed logits spans, and the output errs by ``sum_j |change of w_j| |y_j|`` plus its own rounding,
``k u sum_j w_j (|c A_j| + |B_j|)``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["UNIT", "OpTables", "allowed_error"]

# Half the distance from 1 to the next float32.
UNIT = 2.0**-24
_FLOAT32_MAX = float(np.finfo(np.float32).max)
# exp overflows at 709; a component this far behind has no weight in float32 anyway.
_MAX_EXPONENT = 500.0
# In place of log 0, so that the difference of two dead components' logits is a number.
_DEAD = -1e300

Array = NDArray[np.float64]


@dataclass(frozen=True)
class OpTables:
    """One node's constants: tau (M,), mean, var, scale, bias (M, D), all float32, and its two attributes."""

    tau: NDArray[np.float32]
    mean: NDArray[np.float32]
    var: NDArray[np.float32]
    scale: NDArray[np.float32]
    bias: NDArray[np.float32]
    epsilon: float
    density_scale: float

    def float64(self) -> tuple[Array, Array, Array, Array, Array]:
        """The five tables in float64."""
        tau, mean, var, scale, bias = (
            table.astype(np.float64) for table in (self.tau, self.mean, self.var, self.scale, self.bias)
        )
        return tau, mean, var, scale, bias


def allowed_error(x: Array, tables: OpTables, units: float) -> Array:
    """Largest error of a float32 evaluation of the op, by the model above with ``k = units``.

    Args:
        x: pixels (N, D).
        tables: the node's constants.
        units: ``k``.

    Returns:
        (N, D), not negative; not finite where float32 overflows.
    """
    tau, mean, var, scale, bias = tables.float64()
    prior = tau / tau.sum()
    m0, v0 = prior @ mean, prior @ var + tables.epsilon
    v, delta, c = var + tables.epsilon, mean - m0, x - m0
    half_s = 0.5 * tables.density_scale
    alive = tau > 0
    log_tau = np.log(np.where(alive, prior, 1.0))

    squared, size = c * c, np.abs(c)
    constant = (delta**2 / v + np.abs(np.log(v / v0))).sum(1)
    magnitude = half_s * (squared @ np.abs(1 / v - 1 / v0).T + 2 * size @ np.abs(delta / v).T + constant)
    uncertainty = units * UNIT * (magnitude + np.abs(log_tau) + 1.0)
    distance = squared @ (1 / v - 1 / v0).T - 2 * c @ (delta / v).T + (delta**2 / v + np.log(v / v0)).sum(1)
    w, change = _posterior_interval(np.where(alive, log_tau - half_s * distance, _DEAD), uncertainty)

    A = scale / np.sqrt(v)
    B = bias - A * delta
    y = c * (w @ A) + w @ B
    from_posterior = size * (change @ np.abs(A)) + change @ np.abs(B) + np.abs(y) * change.sum(1, keepdims=True)
    own = (
        size * (w @ np.abs(A)) + w @ (np.abs(B) + np.abs(A) * (np.abs(mean) + np.abs(m0))) + np.abs(x) * (w @ np.abs(A))
    )
    # float32 has no number for these squares and logits, so there is nothing to compare.
    overflows = np.maximum(squared.sum(1), magnitude.max(1)) > _FLOAT32_MAX
    result: Array = np.where(overflows[:, None], np.inf, from_posterior + units * UNIT * own)
    return result


def _posterior_interval(logits: Array, uncertainty: Array) -> tuple[Array, Array]:
    """Softmax of (N, M) logits, and how far each entry can move when every logit moves by its uncertainty.

    ``w_j = 1 / (1 + sum_{k != j} exp(l_k - l_j))``, so its extremes are where ``l_j`` and all others move apart.
    """
    gap = logits[:, None, :] - logits[:, :, None]
    spread = uncertainty[:, None, :] + uncertainty[:, :, None]
    others = 1.0 - np.eye(logits.shape[1])

    def weights(exponents: Array) -> Array:
        result: Array = 1.0 / (1.0 + (np.exp(np.minimum(exponents, _MAX_EXPONENT)) * others).sum(2))
        return result

    w = weights(gap)
    return w, np.maximum(weights(gap - spread) - w, w - weights(gap + spread))
