"""Engine files as far as reading files goes: nothing here could run."""

from __future__ import annotations

import hashlib

from cbn_deploy.runtime.engine_file import EngineDescription, TensorSpec
from tests.onnx_models import SIZE, describe

__all__ = ["ENGINE", "describe_engine"]

ENGINE = b"an engine as far as reading files goes"


def describe_engine(**changes: object) -> EngineDescription:
    """What stands beside :data:`ENGINE`, of the colour model."""
    fields: dict[str, object] = {
        "model": describe(),
        "runtime": "tensorrt-rtx",
        "version": "1.7.1.116",
        "implementation": "function body",
        "compute_capabilities": ("8.9",),
        "batch_sizes": (1, 4, 8),
        "inputs": (TensorSpec("images", "float32", (None, 3, SIZE, SIZE)),),
        "outputs": (TensorSpec("logits", "float32", (None, 3)),),
        "engine_sha256": hashlib.sha256(ENGINE).hexdigest(),
        "onnx_sha256": "0" * 64,
    }
    return EngineDescription(**{**fields, **changes})  # type: ignore[arg-type]
