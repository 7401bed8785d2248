"""From a model to the arrays that :mod:`cbn_deploy.training.evaluation` takes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cbn_deploy.training.ranks import Ranks

__all__ = ["Predictions", "gather_predictions", "predict"]

Predictions = tuple[NDArray[np.float32], NDArray[np.int64]]


@torch.inference_mode()
def predict(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device) -> Predictions:
    """Logits float32 (n, K) and labels (n,) of ``batches``, in eval mode; the training flag is restored."""
    was_training = model.training
    model.eval()
    try:
        return _gather((model(images.to(device)).float().cpu().numpy(), labels.numpy()) for images, labels in batches)
    finally:
        model.train(was_training)


def gather_predictions(ranks: Ranks, own: Predictions | None) -> Predictions | None:
    """Those of all ranks, joined on the first, ``None`` elsewhere; ``own`` is ``None`` on a rank without images."""
    parts = ranks.to_first(own)
    return None if parts is None else _gather(part for part in parts if part is not None)


def _gather(pairs: Iterable[tuple[NDArray[Any], NDArray[Any]]]) -> Predictions:
    logits, labels = zip(*pairs, strict=True)
    return np.concatenate(logits), np.concatenate(labels)
