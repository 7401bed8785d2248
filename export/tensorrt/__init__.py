"""From an exported ``model.onnx`` to a TensorRT engine and the JSON that describes it (docs/tensorrt.md)."""

from export.tensorrt.engine import EngineResult, build_engine, check_engine
from export.tensorrt.options import DEFAULT_BATCH_SIZES, RTX_COMPUTE_CAPABILITIES, EngineOptions

__all__ = [
    "DEFAULT_BATCH_SIZES",
    "RTX_COMPUTE_CAPABILITIES",
    "EngineOptions",
    "EngineResult",
    "build_engine",
    "check_engine",
]
