"""Put our plugin through the Python layer of TensorRT itself; prints what came out as JSON.

    LD_LIBRARY_PATH=STAND_IN:TENSORRT_RTX_LIBS python nvidia_layer.py MODEL.onnx PACKED.onnx

NVIDIA's, and real: ``tensorrt_bindings`` (the compiled bindings and ``tensorrt.plugin``: registration and its checks,
plugin creation, shapes, layouts, launch parameters), the plugin registry and the ONNX parser (TensorRT-RTX's, through
the stand-in library). Ours: the plugin, the Triton kernel and its PTX. Replaced: symbolic dimensions, which only
libnvinfer can make; :class:`Symbol` records them as expressions. An engine is built of the portable body alone, and
nothing runs one.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import tensorrt_bindings as trt


class Symbol:
    """A dimension, as a function of the batch."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def at(self, batch: int) -> int:
        if callable(self.value):
            return int(self.value(batch))
        return int(self.value)

    def is_constant(self) -> bool:
        return not callable(self.value)

    def get_constant_value(self) -> int:
        return int(self.value)


class Builder:
    """Makes and combines :class:`Symbol`, as libnvinfer's IExprBuilder does its own."""

    operations = {  # noqa: RUF012 - constant
        "SUM": lambda a, b: a + b,
        "PROD": lambda a, b: a * b,
        "CEIL_DIV": lambda a, b: -(-a // b),
    }

    def constant(self, value: int) -> Symbol:
        return Symbol(value)

    def operation(self, operation: Any, left: Symbol, right: Symbol) -> Symbol:
        function = self.operations[operation.name]
        return Symbol(lambda batch: function(left.at(batch), right.at(batch)))


class Expressions(list):
    def __init__(self, length: int) -> None:
        super().__init__([None] * length)


class SymbolicArgument:
    """What libnvinfer keeps of an extra argument."""


trt.IDimensionExpr, trt.DimsExprs, trt.ISymExpr = Symbol, Expressions, SymbolicArgument
sys.modules["tensorrt"] = trt
import tensorrt.plugin as trtp  # noqa: E402 - after the replacements

from export.tensorrt.compiler import load_compiler  # noqa: E402
from export.tensorrt.network import build  # noqa: E402
from export.tensorrt.plugin import register_plugins  # noqa: E402

COMPONENTS, CHANNELS, SIZE, BATCHES = 4, 16, 8, (1, 8, 32)


class Collector(trt.ILogger):
    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.messages: list[str] = []

    def log(self, severity: Any, message: str) -> None:
        del severity
        self.messages.append(message)


def parse(path: str, logger: Collector) -> dict[str, Any]:
    """What the parser says about a file."""
    logger.messages.clear()
    network = trt.Builder(logger).create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    parsed = parser.parse(Path(path).read_bytes())
    return {
        "parsed": parsed,
        "errors": [parser.get_error(i).desc() for i in range(parser.num_errors)],
        "as_plugin": sum(m.startswith("Found registered plugin: Compound") for m in logger.messages),
        "as_function": sum(m.startswith("Found registered local function: Compound") for m in logger.messages),
    }


def tensor(shape: tuple[int, ...], dtype: Any, layout: Any) -> Any:
    described = trt.DynamicPluginTensorDesc()
    desc = trt.PluginTensorDesc()
    desc.dims, desc.type, desc.format = trt.Dims(shape), dtype, layout
    described.desc = desc
    described.min, described.opt, described.max = (
        trt.Dims((batch, *shape[1:]) if shape[0] < 0 else shape) for batch in BATCHES
    )
    return described


def drive(name: str, dtype: str, layout: str) -> dict[str, Any]:
    """One node from creation to launch, as the builder goes through it."""
    residual, posterior = "Add" in name, name.endswith("Posterior")
    data_type, table_type = getattr(trt, dtype), trt.float32
    # The parser hands an integer attribute over as 32 bits, whatever the plugin declared.
    fields = [trt.PluginField("components", np.array([COMPONENTS], np.int32), trt.PluginFieldType.INT32)]
    creator = trt.get_plugin_registry().get_creator(name, "1", "cbn")
    plugin = creator.create_plugin(
        name,
        "cbn",
        trt.PluginFieldCollection(fields),
        trt.TensorRTPhase.BUILD,
        trt.QuickPluginCreationRequest.STRICT_AOT,
    )
    count = 3 if residual else 2
    types = [*[data_type] * (count - 1), table_type]
    size = (1 + 4 * COMPONENTS) * CHANNELS + COMPONENTS
    image = [Symbol(lambda batch: batch), Symbol(CHANNELS), Symbol(SIZE), Symbol(SIZE)]
    shapes = [*[image] * (count - 1), [Symbol(size)]]
    output_types = plugin.get_output_data_types(types, [len(shape) for shape in shapes])
    output_shapes = plugin.get_output_shapes(shapes, [], Builder())

    def tensors(chosen: Any) -> list[Any]:
        data = tensor((-1, CHANNELS, SIZE, SIZE), data_type, chosen)
        linear = trt.TensorFormat.LINEAR
        values = [*[data] * (count - 1), tensor((size,), table_type, linear), data]
        return [*values, tensor((-1, COMPONENTS, SIZE, SIZE), table_type, linear)] if posterior else values

    combinations = plugin.get_supported_format_combinations(tensors(trt.TensorFormat.LINEAR), count)
    values = tensors(getattr(trt.TensorFormat, layout))
    plugin.configure_plugin(values[:count], values[count:])
    tactics = plugin.get_valid_tactics()
    plugin.set_tactic(0)
    launch, arguments = SimpleNamespace(), Arguments()
    plugin.get_launch_params(shapes, values, count, launch, arguments, Builder())
    described = [value.desc for value in values]
    kernel_name, ptx = plugin.get_kernel(described[:count], described[count:])
    return {
        "output_types": [t.name for t in output_types],
        "output_shapes": [[size.at(5) for size in shape] for shape in output_shapes],
        "combinations": [f"{c.type.name} {c.format.name}" for c in combinations],
        "tactics": tactics,
        "launch": {name: [value.expr.at(b) for b in BATCHES] for name, value in vars(launch).items()},
        "arguments": [[arguments[i].expr.at(b) for b in BATCHES] for i in range(arguments.nbSymExprs)],
        "argument_types": [arguments[i].dtype.name for i in range(arguments.nbSymExprs)],
        "kernel": kernel_name,
        "ptx": ptx.decode(),
    }


class Arguments(dict):
    nbSymExprs = 0  # noqa: N815 - TensorRT's name


def main() -> None:
    logger = Collector()
    model, packed = sys.argv[1:]
    before = parse(model, logger)
    engine = build(trt, Path(model).read_bytes(), BATCHES, lambda _config: None)
    compiler = load_compiler()
    register_plugins(trt, trtp, compiler)
    register_plugins(trt, trtp, compiler)  # a second time is no error
    creators = trt.get_plugin_registry().all_creators
    names = sorted(c.name for c in creators if (c.plugin_namespace, c.plugin_version) == ("cbn", "1"))
    cases = [(name, "float32", "LINEAR") for name in names]
    cases += [(names[0], "float32", "HWC"), (names[1], "float16", "HWC8"), (names[2], "bfloat16", "LINEAR")]
    result = {
        "version": trt.__version__,
        "names": names,
        "before": before,
        "portable_engine_bytes": len(engine.content),
        "portable_engine_inputs": [[spec.name, spec.dtype, spec.shape] for spec in engine.inputs],
        "original": parse(model, logger),
        "packed": parse(packed, logger),
        "driven": {" ".join(case): drive(*case) for case in cases},
    }
    sys.stdout.write(json.dumps(result))


if __name__ == "__main__":
    main()
