"""Parse an ONNX graph and build an engine: what TensorRT and TensorRT-RTX have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from cbn_deploy.errors import EngineError
from cbn_deploy.runtime.engine_file import TensorSpec
from cbn_deploy.runtime.signature import INPUT
from export.tensorrt.progress import BuildProgress, Messages, logger, progress_monitor

__all__ = ["BuiltEngine", "UseConfig", "build", "product"]

# Does something with the builder's configuration.
UseConfig = Callable[[Any], None]

_DTYPES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "INT8": "int8", "INT32": "int32"}


@dataclass(frozen=True)
class BuiltEngine:
    """A serialized engine and its signature."""

    content: bytes
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def product(trt: ModuleType) -> str:
    """Name and version for a person: "TensorRT 11.4.0" or "TensorRT-RTX 1.7.1"."""
    return f"TensorRT{'-RTX' if 'rtx' in trt.__name__ else ''} {trt.__version__}"


def build(
    trt: ModuleType,
    onnx: bytes,
    batch_sizes: tuple[int, int, int],
    configure: UseConfig,
    progress: BuildProgress | None = None,
    finish: UseConfig | None = None,
) -> BuiltEngine:
    """Build ``onnx``, strongly typed, with one optimisation profile; TF32 is off.

    Args:
        trt: the package, ``tensorrt`` or ``tensorrt_rtx_bindings``; their interfaces agree in all that is used here.
        onnx: a serialized ModelProto with the one input "images".
        batch_sizes: smallest, optimal, largest.
        configure: sets what is particular to the package or the target.
        progress: called with (phase, steps done, steps in all).
        finish: called with the configuration once the engine is built.

    Raises:
        EngineError: the graph cannot be parsed or built.
    """
    log, messages = logger(trt)
    messages.clear()
    builder = trt.Builder(log)
    network = _parse(trt, builder, log, onnx)
    config = builder.create_builder_config()
    # Exactness first: files are exported for float32 to be float32. Who wants tensor cores exports float16.
    config.clear_flag(trt.BuilderFlag.TF32)
    config.add_optimization_profile(_profile(builder, network, batch_sizes))
    configure(config)
    content = _serialize(trt, builder, network, config, messages, progress)
    if finish is not None:
        finish(config)
    return BuiltEngine(
        content,
        tuple(_spec(network.get_input(i)) for i in range(network.num_inputs)),
        tuple(_spec(network.get_output(i)) for i in range(network.num_outputs)),
    )


def _parse(trt: ModuleType, builder: Any, log: Any, onnx: bytes) -> Any:
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(onnx):
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        reasons = dict.fromkeys(f"{error.node_operator()}: {' '.join(error.desc().split())}" for error in errors)
        raise EngineError(
            f"{product(trt)} cannot read the exported graph ({'; '.join(reasons) or 'no reason given'}); "
            "try another version of it and report it."
        )
    return network


def _profile(builder: Any, network: Any, batch_sizes: tuple[int, int, int]) -> Any:
    shape = next(tuple(t.shape) for t in map(network.get_input, range(network.num_inputs)) if t.name == INPUT)
    profile = builder.create_optimization_profile()
    profile.set_shape(INPUT, *((size, *shape[1:]) for size in batch_sizes))
    return profile


def _serialize(
    trt: ModuleType, builder: Any, network: Any, config: Any, messages: Messages, progress: BuildProgress | None
) -> bytes:
    raised: list[BaseException] = []
    if progress is not None:
        config.progress_monitor, raised = progress_monitor(trt, progress)
    engine = builder.build_serialized_network(network, config)
    if raised:
        raise raised[0]
    if engine is None:
        raise EngineError(f"{product(trt)} cannot build the engine: {messages.first}.")
    return bytes(memoryview(engine))


def _spec(tensor: Any) -> TensorSpec:
    dtype = _DTYPES.get(tensor.dtype.name, tensor.dtype.name.lower())
    return TensorSpec(tensor.name, dtype, tuple(None if size < 0 else int(size) for size in tensor.shape))
