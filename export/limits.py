"""How far an exported file may be from its checkpoint: the one table of limits, with reasons."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LIMITS", "Limit"]


@dataclass(frozen=True)
class Limit:
    """A number and why it is that number."""

    value: float
    reason: str


LIMITS: dict[str, Limit] = {
    "op": Limit(
        32.0,
        "units of the float32 rounding-error model (export/rounding.py) between a node's output and the paper's "
        "formula in float64 on the node's own input; about 3 were seen at D = 64, sums of D terms grow as sqrt(D)",
    ),
    "logits": Limit(
        1e-4,
        "absolute while an image's largest |logit| is at most 1, relative to the largest |logit| above that",
    ),
    "rounding": Limit(
        4.0,
        "times what float32 itself costs eager PyTorch (against float64, worst of all extremes), only where that is "
        "more than the limit on logits: far from any image a deep network amplifies rounding; real images get the same "
        "allowance, by their own worst, with --allow-rounding alone",
    ),
    "claim": Limit(
        1e-3,
        "posterior of a pixel of a real image: a component that none gives more is dead if its prior is too; training "
        "leaves components of prior 1e-4 to which single pixels still give 0.2 to 1",
    ),
    "pruning": Limit(
        1e-2,
        "how far a logit of a real image may move in float64 when components are pruned, in units of max(1, largest "
        "|logit|): a change of the model, not rounding, a hundred times the limit on logits; top-1 must stay besides",
    ),
    "self-test": Limit(
        4.0,
        "times a logit's error on the exporting machine, where that is more than the limit on logits: another machine "
        "or runtime sums in another order",
    ),
    "tie": Limit(
        2.0,
        "times the image's limit on logits: two classes closer than that in float64 are a tie, and either may win",
    ),
}
