"""The paper's training equations in float64 numpy, written from the text, loop by loop where a loop is clearer.

Independent of the package: imports nothing of it and uses none of its rearrangements.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def pixels(x: Array) -> Array:
    """(B, D, *spatial) -> (N, D), N = B * prod(spatial)."""
    return np.moveaxis(x, 1, -1).reshape(-1, x.shape[1])


def unpixels(y: Array, shape: tuple[int, ...]) -> Array:
    """Inverse of :func:`pixels` for an array of ``shape``."""
    moved = (shape[0], *shape[2:], shape[1])
    return np.moveaxis(y.reshape(moved), -1, 1)


def posterior(x: Array, tau: Array, mean: Array, var: Array, eps: float, density_scale: float) -> Array:
    """Eq. (8) with Eq. (9): (N, D) -> (N, M)."""
    logits = np.empty((len(x), len(tau)))
    for j in range(len(tau)):
        sigma2 = var[j] + eps
        log_density = -0.5 * (((x - mean[j]) ** 2) / sigma2 + np.log(2 * np.pi * sigma2)).sum(1)
        with np.errstate(divide="ignore"):
            logits[:, j] = np.log(tau[j]) + density_scale * log_density
    logits -= logits.max(1, keepdims=True)
    weights = np.exp(logits)
    return weights / weights.sum(1, keepdims=True)


def m_step(x: Array, w: Array) -> tuple[Array, Array, Array]:
    """Eq. (10)-(12), the variance centred on this batch's mean: mass (M,), mean (M, D), var (M, D)."""
    mass = w.sum(0)
    mean = (w.T @ x) / mass[:, None]
    var = np.stack([(w[:, j, None] * (x - mean[j]) ** 2).sum(0) / mass[j] for j in range(w.shape[1])])
    return mass, mean, var


def compound(x: Array, w: Array, mean: Array, var: Array, scale: Array, bias: Array, eps: float) -> Array:
    """Eq. (7) and (16): (N, D)."""
    y = np.zeros_like(x)
    for j in range(w.shape[1]):
        y += w[:, j, None] * (scale[j] * (x - mean[j]) / np.sqrt(var[j] + eps) + bias[j])
    return y


def ema(old: Array, new: Array, paper_lambda: float) -> Array:
    """Eq. (13)-(15): lambda old + (1 - lambda) new."""
    return paper_lambda * old + (1 - paper_lambda) * new
