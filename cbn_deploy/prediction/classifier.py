"""From image files to rows of a table: what ``/v1/classify`` would answer, and an error in place of what it refuses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Union

import numpy as np
from numpy.typing import NDArray

from cbn_deploy.errors import CbnError, ImageError, ModelFileError, RecipeError
from cbn_deploy.runtime import ModelDescription, Session
from cbn_deploy.runtime.familiarity import energies
from cbn_deploy.runtime.preprocessing import ImageLimits, decode_image, preprocess
from cbn_deploy.runtime.ranking import corrected_logits, parse_prior, rank

__all__ = ["Classifier", "ImagePrediction", "PredictionOptions", "Prepared"]

# An image as the model takes it, float32 (3, H, W), or why it cannot be one.
Prepared = Union[NDArray[np.float32], ImageError]  # noqa: UP007 - numpy's alias knows no `|` on Python 3.10


@dataclass(frozen=True, kw_only=True)
class PredictionOptions:
    """What is asked of every image.

    Attributes:
        top_k: labels in the ranking, at least 1; all classes, if there are fewer.
        prior: "train", "uniform" or a JSON object of label -> probability, as the server takes them
            (:func:`cbn_deploy.runtime.ranking.parse_prior`); ``None``: the model's own.
        limits: of the image files.
    """

    top_k: int = 5
    prior: str | None = None
    limits: ImageLimits = field(default_factory=ImageLimits)

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {self.top_k}")


@dataclass(frozen=True, kw_only=True)
class ImagePrediction:
    """One row: of an image that cannot be classified, its name and ``error``; of any other all but ``error``.

    Attributes:
        image: the file's name, relative to its folder.
        label: the most probable class.
        label_index: its position among the logits.
        probability: of ``label``.
        shot_group: of ``label``: "many", "medium" or "few" training images.
        energy: -logsumexp of the logits: high for what is unlike the images that the model knows.
        top_labels: the ``top_k`` most probable classes, best first.
        top_probabilities: of these.
        error: one sentence.
    """

    image: str
    label: str | None = None
    label_index: int | None = None
    probability: float | None = None
    shot_group: str | None = None
    energy: float | None = None
    top_labels: tuple[str, ...] | None = None
    top_probabilities: tuple[float, ...] | None = None
    error: str | None = None


class Classifier:
    """A session and what is asked of it. :meth:`prepare` may be called from several threads at once.

    Raises:
        RecipeError: a prior that makes no sense for this model.
    """

    def __init__(self, session: Session, options: PredictionOptions) -> None:
        self._session, self._options = session, options
        self._prior = _target_prior(options.prior, session.description)

    def prepare(self, content: bytes) -> NDArray[np.float32]:
        """An image file as the model's input: float32 (3, H, W).

        Raises:
            ImageError: too large, of another format, truncated or damaged.
        """
        return preprocess(decode_image(content, self._options.limits), self._session.description.preprocessing)

    def answer(self, names: Sequence[str], prepared: Sequence[Prepared]) -> list[ImagePrediction]:
        """Classify what could be prepared, in one run; the rows are in the order of ``names``.

        Raises:
            ModelFileError: the model cannot be run.
        """
        usable = [image for image in prepared if not isinstance(image, ImageError)]
        logits = iter(self._run(np.stack(usable)) if usable else ())
        rows = []
        for name, image in zip(names, prepared, strict=True):
            if isinstance(image, ImageError):
                rows.append(ImagePrediction(image=name, error=str(image)))
            else:
                rows.append(self._row(name, next(logits)))
        return rows

    def _run(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        try:
            return self._session.run(images).logits
        except CbnError:
            raise
        except Exception as error:  # runtimes raise what they like
            reason = " ".join(str(error).split())
            raise ModelFileError(
                f"The model cannot be run on {len(images)} images ({reason}); try a smaller --batch-size."
            ) from error

    def _row(self, name: str, logits: NDArray[np.float32]) -> ImagePrediction:
        if not np.isfinite(logits).all():
            return ImagePrediction(image=name, error="The model gives no finite answer to the image.")
        description = self._session.description
        ranking = rank(corrected_logits(logits, description, self._prior), description, self._options.top_k)
        return ImagePrediction(
            image=name,
            label=ranking[0].label,
            label_index=ranking[0].index,
            probability=ranking[0].probability,
            shot_group=ranking[0].shot_group,
            energy=float(energies(logits)),
            top_labels=tuple(line.label for line in ranking),
            top_probabilities=tuple(line.probability for line in ranking),
        )


def _target_prior(text: str | None, description: ModelDescription) -> NDArray[np.float64] | None:
    try:
        return None if text is None else parse_prior(text, description)
    except ValueError as error:
        raise RecipeError(f"--prior: {error}.") from error
