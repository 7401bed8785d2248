"""How sure a recall is that was counted on a few images."""

from __future__ import annotations

import math
from statistics import NormalDist

__all__ = ["Interval", "wilson_interval"]

Interval = tuple[float, float]


def wilson_interval(successes: int, trials: int, level: float = 0.95) -> Interval:
    """Wilson's score interval of a proportion (Wilson 1927), without continuity correction.

    With p = successes / trials, n = trials and z the normal quantile at ``(1 + level) / 2``:

        (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)

    It stays inside 0..1 and keeps a width where p is 0 or 1, which the recall of a rare class often is.

    Raises:
        ValueError: no trials, successes outside 0..trials, or a level outside (0, 1).
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"successes must lie in 0..trials and trials be at least 1, got {successes} of {trials}")
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    z = NormalDist().inv_cdf((1 + level) / 2)
    p = successes / trials
    centre = p + z * z / (2 * trials)
    spread = z * math.sqrt(p * (1 - p) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    # At p = 0 and p = 1 the ends are 0 and 1 exactly; rounding must not move them.
    low = 0.0 if successes == 0 else (centre - spread) / scale
    high = 1.0 if successes == trials else (centre + spread) / scale
    return low, high
