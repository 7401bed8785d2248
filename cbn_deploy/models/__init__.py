"""Networks by name: ``create_model(ArchitectureConfig(...))``."""

from cbn_deploy.models.registry import BN_SUFFIX, MODEL_NAMES, ArchitectureConfig, bn_twin, create_model

__all__ = ["BN_SUFFIX", "MODEL_NAMES", "ArchitectureConfig", "bn_twin", "create_model"]
