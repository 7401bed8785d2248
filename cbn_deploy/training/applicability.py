"""Which settings change nothing in a recipe, and why: typing one of them is a mistake that a person should hear of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cbn_deploy.data.published_sets import PUBLISHED_SETS

if TYPE_CHECKING:
    from cbn_deploy.training.recipe import Recipe

__all__ = ["reason_without_effect"]


def reason_without_effect(recipe: Recipe, key: str) -> str | None:
    """Why ``key`` changes nothing in this recipe; ``None`` if it does change something."""
    batch_norm = recipe.is_batch_norm
    padded = recipe.views.crop == "padded"
    split_path = key == "loss.paths" and recipe.loss.paths == "compound+split"
    reasons = (
        (batch_norm and (key.startswith("norm.") or split_path), f"{recipe.model} is a batch-norm model"),
        *_norm_reasons(recipe, key),
        (not recipe.dual_path and key == "loss.split_weight", "only one path is trained"),
        (
            key == "loss.consistency_weight" and not recipe.dual_path and recipe.loss.paths != "two_views",
            "only one path and one view are trained",
        ),
        *_data_reasons(recipe.data.source, key),
        *_loss_reasons(recipe, key),
        (not recipe.views.autoaugment and key == "views.policy", "views.autoaugment is false"),
        (padded and key == "views.min_area", "it is for views.crop=resized"),
        (not padded and key == "views.padding", "it is for views.crop=padded"),
    )
    return next((reason for applies, reason in reasons if applies), None)


def _norm_reasons(recipe: Recipe, key: str) -> tuple[tuple[bool, str], ...]:
    norm = recipe.norm
    split_keys = ("norm.split_affine", "norm.split_groups", "norm.class_grouping", "norm.normalizer")
    posterior_keys = ("norm.density_scale", "norm.posterior_gradient")
    return (
        (not recipe.dual_path and key in split_keys, "no split path is trained"),
        (norm.split_groups is not None and key == "norm.split_affine", "the split path has tables of its own"),
        (norm.split_groups is not None and key == "norm.normalizer", "the split path has statistics of its own"),
        (norm.statistics != "batch_em" and key == "norm.normalizer", "it is for statistics=batch_em"),
        (norm.groups == 1 and key == "norm.class_grouping", "all classes are in one group"),
        (norm.components == 1 and key in posterior_keys, "one Gaussian has every pixel"),
        (recipe.init_from is not None and key == "norm.initialization", "the statistics come from init_from"),
    )


def _data_reasons(source: str, key: str) -> tuple[tuple[bool, str], ...]:
    published, folder = source in PUBLISHED_SETS, source == "image-folder"
    photographs = ("data.image_size", "data.resize_shorter", "data.cache_mb")
    return (
        (folder and key == "data.rho", "an image folder is used as it is"),
        (published and key in ("data.rho", "data.seed"), f"the lists of {source} are used as they are"),
        (published and key == "data.cache_mb", f"{source} is too large to be kept in memory"),
        (not published and key == "data.lists", "it is for the data sets with published lists"),
        (not (folder or published) and key in photographs, f"{source} images are 32 x 32 and lie in memory"),
    )


def _loss_reasons(recipe: Recipe, key: str) -> tuple[tuple[bool, str], ...]:
    loss, decoupled = recipe.loss, recipe.decoupled
    two_stages = decoupled.share > 0
    losses = {loss.classification, (two_stages and decoupled.classification) or loss.classification}
    weights = {loss.class_weights, decoupled.class_weights if two_stages else "none"}
    margins, additive = ("loss.ldam_max_margin", "loss.ldam_scale"), {"logit_adjustment", "vector_scaling"}
    return (
        (not two_stages and key.startswith("decoupled.") and key != "decoupled.share", "decoupled.share is 0"),
        (loss.class_weights == "none" and key == "loss.class_weights_from", "loss.class_weights is none"),
        ("effective_number" not in weights and key == "loss.effective_number_beta", "no class weights use it"),
        ("focal" not in losses and key == "loss.focal_gamma", "it is for the loss focal"),
        (not additive & losses and key == "loss.tau", "it is for the losses logit_adjustment and vector_scaling"),
        ("vector_scaling" not in losses and key == "loss.vector_scaling_gamma", "it is for the loss vector_scaling"),
        ("ldam" not in losses and key in margins, "it is for the loss ldam"),
    )
