"""The last layer of a network: linear, or the cosine between features and class weights."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["ClassifierFactory", "CosineClassifier"]

# (in_features, num_classes) -> the last layer
ClassifierFactory = Callable[[int, int], nn.Linear]


class CosineClassifier(nn.Linear):
    """``o_k = s <w_k, f> / (|w_k| |f|)``: normalised features and class weights, no bias (Cao et al. 2019).

    The scale s is part of the layer, so that ``softmax(o)`` is what the training's softmax was. A feature vector of
    zeros gives zeros.

    Args:
        in_features: D.
        num_classes: K.
        scale: s, above 0.
    """

    def __init__(self, in_features: int, num_classes: int, scale: float) -> None:
        super().__init__(in_features, num_classes, bias=False)
        self.scale = scale

    def forward(self, input: Tensor) -> Tensor:  # the name of nn.Linear's argument
        """(B, D) -> logits (B, K), each in [-s, s]."""
        return self.scale * F.linear(F.normalize(input, dim=1), F.normalize(self.weight, dim=1))
