"""A run is a recipe: what to train, on what, how. Small frozen configs, changed by ``key=value`` settings."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from cbn_deploy.data import DataConfig, ViewConfig
from cbn_deploy.data.cifar import DEFAULT_RHO as CIFAR_RHO
from cbn_deploy.data.digits import DEFAULT_RHO as DIGITS_RHO
from cbn_deploy.data.samplers import Sampling
from cbn_deploy.errors import RecipeError
from cbn_deploy.models import BN_SUFFIX, MODEL_NAMES, ArchitectureConfig
from cbn_deploy.norm import NormConfig
from cbn_deploy.training import settings
from cbn_deploy.training.applicability import reason_without_effect
from cbn_deploy.training.config import OptimizerConfig, Precision, ScheduleConfig, require
from cbn_deploy.training.loss_config import DecoupledConfig, LossConfig, check_stages

__all__ = [
    "NEUTRAL_KEYS",
    "SHORT_KEYS",
    "DecoupledConfig",
    "LossConfig",
    "OptimizerConfig",
    "Recipe",
    "ScheduleConfig",
    "apply_settings",
    "as_typed",
    "changes",
    "setting_help",
    "unused_settings",
]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole run.

    Attributes:
        name: as in :mod:`cbn_deploy.training.catalog`.
        model: architecture; with the suffix ``-bn`` the batch-norm twin, trained on one path with the strong view.
        seed: of weights, order and augmentation.
        init_from: file of weights to start from, see :mod:`cbn_deploy.training.pretrained`; ``None`` starts afresh.
        data: which images.
        sampling: how an epoch draws its images (:mod:`cbn_deploy.data.samplers`).
        views: weak and strong augmentation.
        norm: the mixture layers (no effect in a ``-bn`` model).
        loss: what is minimised.
        optimizer: how.
        schedule: how long.
        decoupled: a second stage that trains the classifier alone (none by default).
        precision: of convolutions and matrix products while training, "fp32" or "bf16".
    """

    name: str
    model: str = "resnet32"
    seed: int = 0
    init_from: str | None = None
    data: DataConfig
    sampling: Sampling = "instance_balanced"
    views: ViewConfig = field(default_factory=ViewConfig)
    norm: NormConfig = field(default_factory=NormConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig
    decoupled: DecoupledConfig = field(default_factory=DecoupledConfig)
    precision: Precision = "fp32"

    def __post_init__(self) -> None:
        if self.model not in MODEL_NAMES:
            raise ValueError(f"model is {self.model!r}, {settings.suggest(self.model, MODEL_NAMES)}".rstrip("."))
        require(0 <= self.seed < 2**32, "seed", self.seed, "in 0..4294967295")
        require(self.sampling in get_args(Sampling), "sampling", self.sampling, f"one of {get_args(Sampling)}")
        require(self.precision in get_args(Precision), "precision", self.precision, f"one of {get_args(Precision)}")
        check_stages(self.loss, self.decoupled, self.schedule)

    @property
    def is_batch_norm(self) -> bool:
        """Whether the model is a plain batch-norm twin."""
        return self.model.endswith(BN_SUFFIX)

    @property
    def dual_path(self) -> bool:
        """Whether the split path is trained beside the compound path."""
        return self.loss.paths == "compound+split" and not self.is_batch_norm

    @property
    def two_views(self) -> bool:
        """Whether a step needs the weak view."""
        return (self.dual_path or self.loss.paths == "two_views") and self.loss.consistency_weight > 0

    def architecture(self, num_classes: int) -> ArchitectureConfig:
        """The network for K classes."""
        return ArchitectureConfig(
            name=self.model,
            num_classes=num_classes,
            norm=None if self.is_batch_norm else self.norm,
            cosine_scale=self.loss.ldam_scale if self.loss.classification == "ldam" else None,
        )

    def effective(self) -> Recipe:
        """The same run with every setting as it acts.

        Batch norm has no split path, whatever ``loss.paths`` says; ``data.rho`` of ``None`` is the source's own.
        """
        loss, rho = self.loss, self.data.rho or _DEFAULT_RHO.get(self.data.source)
        if self.is_batch_norm and loss.paths == "compound+split":
            loss = dataclasses.replace(loss, paths="compound")
        return dataclasses.replace(self, loss=loss, data=dataclasses.replace(self.data, rho=rho))

    def used_settings(self) -> dict[str, Any]:
        """Dotted key -> value, as it acts (:meth:`effective`), of every setting that has an effect on this run."""
        acting = self.effective()
        return {
            key: settings.get_value(acting, key)
            for key in settings.leaf_types(Recipe)
            if reason_without_effect(acting, key) is None
        }

    def experiment(self) -> dict[str, Any]:
        """:meth:`used_settings` without :data:`NEUTRAL_KEYS`: two runs with the same ones are the same experiment."""
        return {key: value for key, value in self.used_settings().items() if key not in NEUTRAL_KEYS}

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types (inverse of :meth:`from_dict`)."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Recipe:
        """Rebuild from :meth:`to_dict`'s output.

        Raises:
            RecipeError: a key is missing or unknown, or a value is impossible.
        """
        return settings.build(cls, plain)


# What people type most, without the part it belongs to.
SHORT_KEYS: Mapping[str, str] = {
    "model": "model",
    "components": "norm.components",
    "epochs": "schedule.epochs",
    "batch_size": "schedule.batch_size",
    "accumulate": "schedule.accumulate",
    "lr": "optimizer.lr",
    "seed": "seed",
    "rho": "data.rho",
    "statistics": "norm.statistics",
}
# They change nothing that is trained: another place on disk, another way to the same images, when to look at them.
_BYSTANDERS = ("data.cache_mb", "data.lists", "schedule.evaluate_every")
# They change no result on purpose.
NEUTRAL_KEYS = ("name", "seed", *_BYSTANDERS)
_DEFAULT_RHO: Mapping[str, float] = {"digits-lt": DIGITS_RHO, "cifar10-lt": CIFAR_RHO, "cifar100-lt": CIFAR_RHO}
# What a recipe is: changing these would make it another recipe.
_FIXED_KEYS = ("name", "data.source")


def apply_settings(recipe: Recipe, assignments: Iterable[str]) -> Recipe:
    """Change a recipe by texts such as ``"lr=0.1"``, ``"norm.density_scale=joint"`` or ``"rho=none"``.

    Keys are :data:`SHORT_KEYS` or dotted keys; values are read as the type of the setting; the last of two settings
    of one key counts.

    Raises:
        RecipeError: not ``key=value``, an unknown key, a value of the wrong type or out of range, a patch of cutout
            as large as the images, or a setting that would have no effect in this recipe.
    """
    types = {key: kind for key, kind in settings.leaf_types(Recipe).items() if key not in _FIXED_KEYS}
    values: dict[str, Any] = {}
    for assignment in assignments:
        typed, equals, text = (part.strip() for part in assignment.partition("="))
        if not equals or not typed:
            raise RecipeError(f"Settings are written key=value, such as lr=0.1; got {assignment!r}.")
        key = SHORT_KEYS.get(typed, typed)
        if key not in types:
            known = [*SHORT_KEYS, *(key for key in types if key not in SHORT_KEYS.values())]
            raise RecipeError(f"There is no setting {typed!r}; {settings.suggest(typed, known)}")
        try:
            values[key] = settings.parse_value(text, types[key])
        except ValueError:
            raise RecipeError(f"{typed} must be {settings.describe_type(types[key])}, got {text!r}.") from None
    try:
        changed = settings.replace_values(recipe, values)
    except ValueError as error:
        raise RecipeError(f"These settings are not possible: {error}.") from error
    # Here and not in Recipe: reports and models of runs that had it are still read.
    if changed.views.cutout >= changed.data.image_size:
        raise RecipeError(
            f"views.cutout={changed.views.cutout} can hide all of an image of "
            f"data.image_size={changed.data.image_size} pixels; half of the size is usual, 0 hides nothing."
        )
    for key in values:
        if reason := reason_without_effect(changed, key):
            raise RecipeError(f"{key} has no effect here, {reason}; leave it out.")
    return changed


def changes(ours: Recipe, theirs: Recipe) -> dict[str, tuple[Any, Any]]:
    """Dotted key -> (ours, theirs), as they act, of the settings that make two runs different trainings.

    Of ``init_from`` it counts whether there is one: the same weights may lie elsewhere.
    """
    found = settings.differences(ours.effective(), theirs.effective())
    if None not in found.get("init_from", (None,)):
        del found["init_from"]
    return {key: values for key, values in found.items() if key not in _BYSTANDERS}


def setting_help(recipe: Recipe) -> list[tuple[str, Any, str]]:
    """(key as typed, present value, what may be typed) of every setting that has an effect in this recipe."""
    allowed = {key: settings.describe_type(kind) for key, kind in settings.leaf_types(Recipe).items()}
    allowed["model"] = "one of " + ", ".join(MODEL_NAMES)
    return [
        (as_typed(key), value, allowed[key]) for key, value in recipe.used_settings().items() if key not in _FIXED_KEYS
    ]


def unused_settings(recipe: Recipe) -> list[str]:
    """Keys, as typed, of the settings that have no effect in this recipe; another setting may give them one."""
    used = recipe.used_settings()
    return [as_typed(key) for key in settings.leaf_types(Recipe) if key not in (*used, *_FIXED_KEYS)]


def as_typed(key: str) -> str:
    """``key`` as people type it: its short form, if it has one."""
    return next((short for short, dotted in SHORT_KEYS.items() if dotted == key), key)
