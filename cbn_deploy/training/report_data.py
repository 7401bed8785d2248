"""What a finished run has to say: the content of ``report.json``, and what the pictures and the page are made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cbn_deploy.norm import MixtureHealth
from cbn_deploy.runtime.description import ShotGroup, frequency_order, shot_group
from cbn_deploy.training.comparison import Comparison
from cbn_deploy.training.evaluation import Confusion, Evaluation
from cbn_deploy.training.metrics_log import EpochMetrics

__all__ = ["RunReport"]

_FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """One finished run.

    Attributes:
        recipe: the recipe as a JSON dict.
        settings: dotted key -> value of the settings that had an effect.
        title: recipe and model in words.
        evaluation: the LAST epoch's model on the test set (there is no validation set, so no epoch is chosen).
        comparison: the paper's figures for the same experiment, ``None`` where it has none on these data.
        confusions: the most frequent mistakes.
        history: one entry an epoch, without those whose line in metrics.jsonl was lost.
        class_names: K names.
        class_counts: K training counts.
        test_images: size of the test set.
        mixture: layer name -> :class:`MixtureHealth`; empty for a batch-norm model.
        parameters: learned parameters of the network.
        seconds: wall-clock seconds of training.
        device: where it ran.
        threads: CPU threads of torch.
        versions: package -> version.
    """

    recipe: Mapping[str, Any]
    settings: Mapping[str, Any]
    title: str
    evaluation: Evaluation
    comparison: Comparison | None
    confusions: tuple[Confusion, ...]
    history: tuple[EpochMetrics, ...]
    class_names: tuple[str, ...]
    class_counts: tuple[int, ...]
    test_images: int
    mixture: Mapping[str, MixtureHealth]
    parameters: int
    seconds: float
    device: str
    threads: int
    versions: Mapping[str, str]

    @property
    def frequency_order(self) -> tuple[int, ...]:
        """Class indices, most training images first, ties in class order."""
        return tuple(frequency_order(self.class_counts))

    @property
    def group_sizes(self) -> dict[ShotGroup, int]:
        """How many classes are many, medium and few."""
        sizes: dict[ShotGroup, int] = {"many": 0, "medium": 0, "few": 0}
        for count in self.class_counts:
            sizes[shot_group(count)] += 1
        return sizes

    @property
    def imbalance(self) -> float:
        """rho: the largest training count over the smallest."""
        return max(self.class_counts) / min(self.class_counts)

    def to_dict(self) -> dict[str, Any]:
        """A dict of plain JSON types: ``report.json``."""
        return {
            "format_version": _FORMAT_VERSION,
            "title": self.title,
            "recipe": dict(self.recipe),
            "evaluation": self.evaluation.to_dict(),
            "comparison": None if self.comparison is None else self.comparison.to_dict(),
            "classes": [
                {"name": name, "training_images": count, "group": shot_group(count), "recall": recall}
                for name, count, recall in zip(
                    self.class_names, self.class_counts, self.evaluation.per_class, strict=True
                )
            ],
            "confusions": [
                {
                    "true": self.class_names[pair.true],
                    "predicted": self.class_names[pair.predicted],
                    "count": pair.count,
                }
                for pair in self.confusions
            ],
            "test_images": self.test_images,
            "mixture": {layer: mixture.to_dict() for layer, mixture in self.mixture.items()},
            "history": [dataclasses.asdict(metrics) for metrics in self.history],
            "parameters": self.parameters,
            "seconds": self.seconds,
            "device": self.device,
            "threads": self.threads,
            "versions": dict(self.versions),
        }
