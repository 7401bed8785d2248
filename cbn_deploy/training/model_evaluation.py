"""Everything that ``cbn-eval`` finds out about a model file, whatever runtime runs it."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cbn_deploy.errors import ModelFileError
from cbn_deploy.norm import MixtureHealth, MixtureTally
from cbn_deploy.runtime import Session
from cbn_deploy.training.evaluation import Evaluation, evaluate_predictions
from cbn_deploy.training.metrics import (
    Calibration,
    ShiftedScore,
    calibrate,
    evaluate_prior_shift,
)

__all__ = ["ModelEvaluation", "evaluate_model"]


@dataclass(frozen=True, kw_only=True)
class ModelEvaluation:
    """One model on one test set.

    Attributes:
        images: test images.
        temperature: the one that the file carries, which the probabilities were computed with; ``None``: it has none.
        scores: every metric of the predictions.
        mixture: layer name -> how its Gaussians are used; empty if the file returns no posteriors.
        calibration: a temperature fitted anew; ``None`` if not asked for, or if none fits.
        prior_shift: from forward 50 to backward 50; empty if not asked for.
    """

    images: int
    temperature: float | None
    scores: Evaluation
    mixture: Mapping[str, MixtureHealth]
    calibration: Calibration | None
    prior_shift: tuple[ShiftedScore, ...]

    def to_dict(self) -> dict[str, Any]:
        """A dict of plain JSON types: the figures of ``cbn-eval --json``, ``None`` for what was not measured."""
        return {
            **self.scores.to_dict(),
            "images": self.images,
            "temperature": self.temperature,
            "mixture": {layer: use.to_dict() for layer, use in self.mixture.items()} or None,
            "calibration": None if self.calibration is None else self.calibration.to_dict(),
            "prior_shift": [dataclasses.asdict(score) for score in self.prior_shift] or None,
        }


def evaluate_model(
    session: Session,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    with_calibration: bool = False,
    with_prior_shift: bool = False,
    progress: Callable[[int], None] | None = None,
) -> ModelEvaluation:
    """Run ``batches`` of images (B, 3, H, W) and labels (B,), all in one pass, and measure.

    Args:
        session: the model; a checkpoint's returns posteriors if it was opened ``with_posteriors``.
        batches: at least one, as :func:`cbn_deploy.data.evaluation_batches` makes them.
        with_calibration: fit a temperature, which needs two images.
        with_prior_shift: evaluate under other class priors too.
        progress: called with the images done so far after every batch.

    Raises:
        ModelFileError: the model's logits are not finite on some image.
    """
    mixture: defaultdict[str, MixtureTally] = defaultdict(MixtureTally)
    parts: list[tuple[NDArray[np.float32], NDArray[np.int64]]] = []
    done = 0
    for images, truth in batches:
        prediction = session.run(images.numpy())
        for layer, posterior in prediction.posteriors.items():
            mixture[layer].add(torch.from_numpy(posterior))
        parts.append((prediction.logits, truth.numpy()))
        done += len(truth)
        if progress is not None:
            progress(done)
    logits, labels = (np.concatenate(column) for column in zip(*parts, strict=True))
    _require_finite(logits, session)
    description = session.description
    prior = np.asarray(description.training_prior)
    scaled = logits if description.temperature is None else logits / description.temperature
    return ModelEvaluation(
        images=done,
        temperature=description.temperature,
        scores=evaluate_predictions(scaled, labels, description.class_counts),
        mixture={layer: tally.health() for layer, tally in mixture.items()},
        calibration=calibrate(logits, labels, prior) if with_calibration and done > 1 else None,
        prior_shift=evaluate_prior_shift(scaled, labels, description.class_counts, prior) if with_prior_shift else (),
    )


def _require_finite(logits: NDArray[np.float32], session: Session) -> None:
    broken = int((~np.isfinite(logits)).any(axis=1).sum())
    if broken:
        raise ModelFileError(
            f"{session.describe().file} answers {broken} of {len(logits)} images with NaN or infinity; its training "
            "diverged, or its precision is too low for its activations."
        )
