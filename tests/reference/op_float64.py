"""The op ``CompoundBatchNormalization`` in float64 numpy, component by component, and how ill-conditioned a case is.

Written from docs/op.md's equations alone: imports nothing of the package, uses none of its rearrangements.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class OpResult:
    """Y (B, D, *spatial), posterior (B, M, *spatial), and the condition numbers of both, shaped alike.

    A backward-stable evaluation in arithmetic of unit roundoff u errs by at most a modest multiple of u * condition.
    """

    y: Array
    posterior: Array
    y_condition: Array
    posterior_condition: Array


def compound_batch_normalization(
    x: Array,
    tau: Array,
    mean: Array,
    var: Array,
    scale: Array,
    bias: Array,
    epsilon: float,
    density_scale: float,
    *,
    unit: float,
    residual: Array | None = None,
    relu: bool = False,
) -> OpResult:
    """The op; ``unit`` (k u) is where the posterior's response to rounding is evaluated."""
    pixels = np.moveaxis(x, 1, -1).reshape(-1, x.shape[1])
    count, components = len(pixels), len(tau)
    logits, size, normed = np.empty((count, components)), np.empty((count, components)), []
    reference_mean, reference_var = tau @ mean / tau.sum(), tau @ var / tau.sum() + epsilon
    for j in range(components):
        v = var[j] + epsilon
        log_density = -0.5 * ((pixels - mean[j]) ** 2 / v + np.log(v)).sum(1)
        logits[:, j] = (np.log(tau[j]) if tau[j] > 0 else -np.inf) + density_scale * log_density
        spread = (np.abs(pixels - reference_mean) + np.abs(mean[j] - reference_mean)) ** 2 / v
        spread = spread + (pixels - reference_mean) ** 2 / reference_var + np.abs(np.log(v / reference_var))
        size[:, j] = 0.5 * density_scale * spread.sum(1) + (abs(np.log(tau[j] / tau.sum())) if tau[j] > 0 else 0) + 1
        normed.append(scale[j] * (pixels - mean[j]) / np.sqrt(v) + bias[j])
    w = _softmax(logits)
    move = _movement(logits, unit * size, w)
    y = sum(w[:, j, None] * normed[j] for j in range(components))
    own = sum(
        w[:, j, None]
        * (
            np.abs(scale[j])
            * (np.abs(pixels) + np.abs(mean[j]) + 2 * np.abs(reference_mean))
            / np.sqrt(var[j] + epsilon)
        )
        + w[:, j, None] * np.abs(bias[j])
        for j in range(components)
    )
    y_condition = own + sum(move[:, j, None] * np.abs(normed[j] - y) for j in range(components)) / unit
    y, y_condition = _spatial(y, x.shape), _spatial(y_condition, x.shape)
    if residual is not None:
        y, y_condition = y + residual, y_condition + np.abs(y) + np.abs(residual)
    shape = (x.shape[0], components, *x.shape[2:])
    return OpResult(
        y=np.maximum(y, 0) if relu else y,
        posterior=_spatial(w, shape),
        y_condition=y_condition,
        # The value that is rounded is the one that has moved.
        posterior_condition=_spatial(w + move + move / unit, shape),
    )


def _softmax(logits: Array) -> Array:
    exponential = np.exp(logits - logits.max(1, keepdims=True))
    return exponential / exponential.sum(1, keepdims=True)


def _movement(logits: Array, uncertainty: Array, w: Array) -> Array:
    """How far w_j goes when its logit rises (falls) and all others fall (rise) by their uncertainty."""
    move = np.zeros_like(w)
    for j in range(w.shape[1]):
        for sign in (1.0, -1.0):
            shift = -sign * uncertainty
            shift[:, j] *= -1
            move[:, j] = np.maximum(move[:, j], np.abs(_softmax(logits + shift)[:, j] - w[:, j]))
    return move * (1 + 1e-9)  # where a posterior may be anything, the oracle's own rounding decides


def _spatial(values: Array, shape: tuple[int, ...]) -> Array:
    return np.moveaxis(values.reshape(shape[0], *shape[2:], values.shape[1]), -1, 1)
