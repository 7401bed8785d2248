"""From logits to class probabilities: temperature and prior correction, one implementation for server and evaluation.

Let z be a model's logits, T its temperature (``temperature`` of its description, 1 where it has none) and pi_m the
class prior that ``softmax(z / T)`` assumes (``training_prior``). By Bayes, p(y|x) is proportional to p(x|y) pi(y), so
the posterior under another prior pi_t is

    softmax(z / T + log pi_t - log pi_m).

The temperature comes first: it belongs to the model's own posterior, whatever prior is asked for afterwards.

pi_m is the training frequencies for a model trained with plain cross-entropy. A balanced softmax adds log n_y to the
logits in the LOSS only, so its z already stand for a uniform prior.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["correct_prior", "log_softmax"]


def log_softmax(logits: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """``z - logsumexp(z)`` over the last axis, in float64. ``-inf`` entries get probability 0."""
    z = np.asarray(logits, dtype=np.float64)
    shifted = z - z.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def correct_prior(
    logits: NDArray[np.floating[Any]], model_prior: NDArray[np.float64], target_prior: NDArray[np.float64]
) -> NDArray[np.float64]:
    """``z + log target - log model``: logits (..., K) whose softmax is the posterior under ``target_prior``.

    A target of 0 excludes its class. A class that the model's prior gives 0 was never seen: it is treated as the rarest
    class that was, because dividing by zero would make it certain. Logits of a calibrated model are divided by its
    temperature first.
    """
    floor = model_prior[model_prior > 0].min()
    with np.errstate(divide="ignore"):
        shift = np.log(target_prior) - np.log(np.maximum(model_prior, floor))
    return np.asarray(np.asarray(logits, dtype=np.float64) + shift)
