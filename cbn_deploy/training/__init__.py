"""Training: recipe -> trainer -> report. Start at :func:`train` and :data:`RECIPES`."""

from cbn_deploy.training.catalog import RECIPES, get_recipe
from cbn_deploy.training.evaluation import Evaluation, evaluate_predictions
from cbn_deploy.training.progress import Progress, RunPlan, StepMetrics
from cbn_deploy.training.recipe import Recipe, apply_settings
from cbn_deploy.training.trainer import TrainingResult, train

__all__ = [
    "RECIPES",
    "Evaluation",
    "Progress",
    "Recipe",
    "RunPlan",
    "StepMetrics",
    "TrainingResult",
    "apply_settings",
    "evaluate_predictions",
    "get_recipe",
    "train",
]
