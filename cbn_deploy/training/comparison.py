"""A run beside the paper: the experiment that it repeats, what the paper prints for it, and what is different."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cbn_deploy.data import long_tail_counts
from cbn_deploy.data.published_sets import PUBLISHED_SETS
from cbn_deploy.training import settings
from cbn_deploy.training.experiments import ALIASES, EXPERIMENTS, SECTIONS
from cbn_deploy.training.published import PublishedResult, published_results
from cbn_deploy.training.recipe import SHORT_KEYS, Recipe, as_typed, changes

__all__ = ["Comparison", "compare"]

# What Section 4.2 does not give, or what its text admits several readings of.
_OUR_CHOICES = (
    "optimizer.weight_decay",
    "views.cutout",
    "loss.split_weight",
    "loss.consistency_weight",
    "norm.statistics",
    "norm.momentum",
    "norm.density_scale",
    "norm.initialization",
    "norm.posterior_gradient",
    "norm.class_grouping",
    "norm.split_groups",
    "norm.split_affine",
    "norm.normalizer",
    "decoupled.lr",
    "decoupled.classification",
    "decoupled.classifier",
    "decoupled.sampling",
    "decoupled.class_weights",
)
_OUR_CHOICES_LARGE = ("epochs", "batch_size", "lr")
_CIFAR_CLASSES = {"cifar10-lt": 10, "cifar100-lt": 100}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What stands beside a run's own figures.

    Attributes:
        experiment: name of the recipe of the paper's experiment that the run is nearest to.
        shown_in: where the paper has it, such as "Table 2: Baseline + CBN"; empty for a control of ours.
        published: its figures in the paper; empty where the paper plots it without printing a figure.
        others: every other method's figure on the same data.
        differences: what the run does differently from that recipe, a phrase each; empty if nothing.
        choices: the recipe's settings where the paper is silent or ambiguous, ``key=value``.
    """

    experiment: str
    shown_in: tuple[str, ...]
    published: tuple[PublishedResult, ...]
    others: tuple[PublishedResult, ...]
    differences: tuple[str, ...]
    choices: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return dataclasses.asdict(self)


def compare(recipe: Recipe, class_counts: Sequence[int]) -> Comparison | None:
    """The paper's experiment on the same data that has the fewest settings different from the run's.

    A recipe of the paper that was changed to an imbalance that the paper does not have is compared with itself.

    Args:
        recipe: the run's.
        class_counts: K training counts of the data that it was trained on.

    Returns:
        ``None`` where the paper has no experiment on these data.
    """
    data = _data_name(recipe)
    candidates = [experiment for experiment in EXPERIMENTS.values() if _data_name(experiment) == data]
    if not candidates and recipe.name in EXPERIMENTS:
        candidates = [EXPERIMENTS[recipe.name]]
    if not candidates:
        return None
    nearest = min(candidates, key=lambda other: (len(_differences(recipe, other)), other.name != recipe.name))
    results = [result for result in published_results() if result.data == _data_name(nearest)]
    return Comparison(
        experiment=nearest.name,
        shown_in=_places(nearest.name),
        published=tuple(result for result in results if result.experiment == nearest.name),
        others=tuple(result for result in results if result.experiment != nearest.name),
        differences=(*_differences(recipe, nearest), *_other_images(nearest, sum(class_counts))),
        choices=_choices(nearest),
    )


def _data_name(recipe: Recipe) -> str:
    """As in ``published.json``."""
    source = recipe.data.source
    return f"{source}/rho{recipe.experiment()['data.rho']:g}" if source in _CIFAR_CLASSES else source


def _differences(ours: Recipe, theirs: Recipe) -> tuple[str, ...]:
    compared = (ours.experiment() | theirs.experiment()).keys()
    return tuple(
        f"{as_typed(key)} {_text(mine)} instead of {_text(other)}"
        for key, (mine, other) in changes(ours, theirs).items()
        if key in compared
    )


def _other_images(recipe: Recipe, images: int) -> tuple[str, ...]:
    source = recipe.data.source
    if source in _CIFAR_CLASSES:
        classes = _CIFAR_CLASSES[source]
        published = sum(long_tail_counts(50_000 // classes, recipe.experiment()["data.rho"], classes))
    else:
        published = PUBLISHED_SETS[source].lines["train"]
    return () if images == published else (f"{images:,} training images instead of {published:,}",)


def _places(name: str) -> tuple[str, ...]:
    return tuple(
        f"{section.title}: {row.label}"
        for section in SECTIONS
        for row in section.rows
        if section.title != "Controls" and ALIASES.get(row.name, row.name) == name
    )


def _choices(recipe: Recipe) -> tuple[str, ...]:
    used = recipe.used_settings()
    keys = [key for key in _OUR_CHOICES if key in used]
    if recipe.data.source in PUBLISHED_SETS:
        keys = [*_OUR_CHOICES_LARGE, *keys]
    return tuple(f"{key}={_text(settings.get_value(recipe, SHORT_KEYS.get(key, key)))}" for key in keys)


def _text(value: object) -> str:
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
