"""What a recipe says about its losses, and about a second stage that trains the classifier alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from cbn_deploy.data.samplers import Sampling
from cbn_deploy.training.config import ScheduleConfig, require

__all__ = [
    "ClassWeights",
    "ClassificationLoss",
    "ClassifierStart",
    "DecoupledConfig",
    "LossConfig",
    "Paths",
    "check_stages",
]

ClassificationLoss: TypeAlias = Literal[
    "balanced_softmax", "cross_entropy", "focal", "ldam", "logit_adjustment", "vector_scaling"
]
Paths: TypeAlias = Literal["compound", "compound+split", "two_views"]
ClassWeights: TypeAlias = Literal["none", "inverse", "effective_number"]
ClassifierStart: TypeAlias = Literal["keep", "reset", "rescale"]


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """What is minimised: ``L_cls(compound) + split_weight L_cls(split) + consistency_weight L_sim``.

    The equations are in :mod:`cbn_deploy.training.losses`.

    Attributes:
        classification: L_cls. "balanced_softmax" (Eq. 20), "cross_entropy", "focal" (Lin et al. 2017), "ldam" (Cao et
            al. 2019, with normalised features and classifier weights), "logit_adjustment" (Menon et al. 2021) or
            "vector_scaling" (the VS loss, Kini et al. 2021).
        paths: "compound+split" is dual-path learning (Section 3.4), "compound" trains the compound path alone;
            "two_views" trains it alone, too, but agrees its strong view with its weak one: the control that tells what
            two views give without a second path.
        split_weight: weight of L_cls on the split path (Eq. 20 as printed has the compound path only: 0).
        consistency_weight: weight of L_sim (Eq. 19, or its one-path form); 0 leaves the weak view out altogether.
        class_weights: factor on the loss of each image by its class, of mean 1 over the classes: "inverse" of the
            training count, or of the "effective_number" of images (Cui et al. 2019).
        class_weights_from: share of the epochs (with decoupled training, of the first stage's) that pass before the
            class weights begin; 0.8 is the deferred re-weighting of Cao et al. (2019).
        effective_number_beta: beta of Cui et al.
        focal_gamma: focusing exponent of the focal loss.
        tau: factor on the log class shares that "logit_adjustment" and "vector_scaling" add to the logits.
        vector_scaling_gamma: exponent of the factors ``(n_k / n_max)^gamma`` of "vector_scaling".
        ldam_max_margin: the rarest class's margin.
        ldam_scale: s, what the cosines are multiplied by.
    """

    classification: ClassificationLoss = "balanced_softmax"
    paths: Paths = "compound+split"
    split_weight: float = 1.0
    consistency_weight: float = 0.5
    class_weights: ClassWeights = "none"
    class_weights_from: float = 0.0
    effective_number_beta: float = 0.9999
    focal_gamma: float = 2.0
    tau: float = 1.0
    vector_scaling_gamma: float = 0.15
    ldam_max_margin: float = 0.5
    ldam_scale: float = 30.0

    def __post_init__(self) -> None:
        _require_choice("classification", self.classification, get_args(ClassificationLoss))
        _require_choice("paths", self.paths, get_args(Paths))
        _require_choice("class_weights", self.class_weights, get_args(ClassWeights))
        for name in ("split_weight", "consistency_weight", "focal_gamma", "tau", "vector_scaling_gamma"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        for name in ("class_weights_from", "effective_number_beta"):
            require(0 <= getattr(self, name) < 1, name, getattr(self, name), "in [0, 1)")
        for name in ("ldam_max_margin", "ldam_scale"):
            require(getattr(self, name) > 0, name, getattr(self, name), "above 0")


@dataclass(frozen=True, kw_only=True)
class DecoupledConfig:
    """Decoupled training (Section 4.3, Kang et al. 2020): representation first, then the classifier on fixed features.

    The second stage trains the last layer alone, with one view on the compound path. See
    :mod:`cbn_deploy.training.decoupled`.

    Attributes:
        share: share of the epochs that train the classifier alone, rounded to whole epochs (0.2 in the paper's Table
            3); 0 trains everything all the time.
        classifier: "keep" goes on with the classifier of the first stage, "reset" starts afresh (cRT), "rescale" learns
            the length of each class's weight vector only (LWS).
        classification: L_cls of the second stage; ``None``: that of the first.
        sampling: how the second stage draws its images.
        class_weights: class weights of the second stage.
        lr: peak learning rate of the second stage, which has a cosine schedule of its own; ``None``: that of the first.
    """

    share: float = 0.0
    classifier: ClassifierStart = "keep"
    classification: ClassificationLoss | None = None
    sampling: Sampling = "instance_balanced"
    class_weights: ClassWeights = "none"
    lr: float | None = None

    def __post_init__(self) -> None:
        require(0 <= self.share < 1, "share", self.share, "in [0, 1)")
        _require_choice("classifier", self.classifier, get_args(ClassifierStart))
        if self.classification is not None:
            _require_choice("classification", self.classification, get_args(ClassificationLoss))
        _require_choice("sampling", self.sampling, get_args(Sampling))
        _require_choice("class_weights", self.class_weights, get_args(ClassWeights))
        require(self.lr is None or self.lr > 0, "lr", self.lr, "above 0 or none")

    def classifier_epochs(self, epochs: int) -> int:
        """How many of ``epochs`` belong to the second stage.

        Raises:
            ValueError: one of the two stages would have no epoch.
        """
        if self.share == 0:
            return 0
        second = round(self.share * epochs)
        if not 0 < second < epochs:
            raise ValueError(f"decoupled.share {self.share:g} of {epochs} epochs leaves one stage without an epoch")
        return second


def check_stages(loss: LossConfig, decoupled: DecoupledConfig, schedule: ScheduleConfig) -> None:
    """Raise ValueError if the two stages of a run do not fit together or into its epochs."""
    second = decoupled.classifier_epochs(schedule.epochs)
    if not second:
        return
    first = schedule.epochs - second
    require(schedule.warmup_epochs < first, "warmup_epochs", schedule.warmup_epochs, f"in 0..{first - 1}")
    if loss.classification == "ldam":
        require(decoupled.classifier != "rescale", "decoupled.classifier", "rescale", "keep or reset with ldam weights")
    elif decoupled.classification == "ldam":
        raise ValueError("decoupled.classification can be ldam only where loss.classification is ldam")


def _require_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    require(value in choices, name, value, f"one of {', '.join(choices)}")
