"""The learning rate of every optimizer step."""

from __future__ import annotations

import math

__all__ = ["cosine_learning_rate"]


def cosine_learning_rate(step: int, total_steps: int, peak: float, warmup_steps: int = 0) -> float:
    """Cosine annealing from ``peak`` to 0 after an optional linear warm-up.

    Args:
        step: 0-based index of the optimizer step, below ``total_steps``.
        total_steps: steps of the whole run, warm-up included.
        peak: the highest learning rate.
        warmup_steps: steps of the warm-up; step i of it gets ``peak * (i + 1) / (warmup_steps + 1)``.

    Raises:
        ValueError: ``step`` outside the run, or a warm-up as long as the run.
    """
    if not 0 <= step < total_steps or not 0 <= warmup_steps < total_steps:
        raise ValueError(f"step {step} or warm-up {warmup_steps} does not fit a run of {total_steps} steps")
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    return 0.5 * peak * (1.0 + math.cos(math.pi * progress))
