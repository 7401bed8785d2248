"""The models that are served: what is loaded, what is being loaded, and what could not be."""

from serving.models.registry import ModelRegistry
from serving.models.served import ServedModel
from serving.models.state import ModelState
from serving.models.statistics import Durations, ModelStatistics
from serving.models.watcher import Watcher

__all__ = ["Durations", "ModelRegistry", "ModelState", "ModelStatistics", "ServedModel", "Watcher"]
