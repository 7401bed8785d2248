"""int8: convolutions on 8-bit integers (onnxruntime's static quantiser, QDQ), everything else in float32."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

from cbn_deploy.runtime.description import Preprocessing
from cbn_deploy.runtime.preprocessing import normalize
from cbn_deploy.runtime.signature import INPUT
from export.op_nodes import cbn_nodes
from export.to_onnx import IR_VERSION

__all__ = ["METHOD", "quantize_int8"]

METHOD = "smallest and largest value"
_BATCH = 8


def quantize_int8(
    graph: ir.Model,
    calibration: NDArray[np.uint8],
    preprocessing: Preprocessing,
    progress: Callable[[int], None] | None = None,
) -> ir.Model:
    """A copy of ``graph`` with DequantizeLinear / QuantizeLinear around its convolutions.

    Weights are int8, symmetric, one scale for every output channel, and use 7 bits: products of 8-bit activations with
    8-bit weights saturate on x86 processors without VNNI instructions, silently. Activations are uint8, one scale and
    zero point for each tensor, from its smallest and largest value on the calibration images. In a network without
    nodes of the op, additions, activations and max pooling between convolutions are 8-bit too.

    The first convolution (images have few channels and need the full range of values) and the classifier (which
    decides between close classes) stay float32: together they are a small part of the work.

    Args:
        graph: as ``build_graph`` makes it, batch norm folded.
        calibration: uint8 (n, H, W, 3) at the model's size, n >= 1.
        preprocessing: of the model.
        progress: called with the number of images since the last call.
    """
    with tempfile.TemporaryDirectory() as folder, _quiet():
        source, target = Path(folder) / "float32.onnx", Path(folder) / "int8.onnx"
        source.write_bytes(ir.serde.serialize_model(graph).SerializeToString())
        quantize_static(
            source,
            target,
            _Reader(_batches(calibration, preprocessing, progress)),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv"] if cbn_nodes(graph) else ["Conv", "Add", "Relu", "MaxPool"],
            nodes_to_exclude=_first_convolutions(graph),
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
            activation_type=QuantType.QUInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )
        quantized = ir.serde.deserialize_model(onnx.load(target))
    quantized.metadata_props.clear()
    quantized.ir_version = IR_VERSION
    return quantized


class _Reader:
    """What onnxruntime's calibration asks for its inputs."""

    def __init__(self, batches: Iterator[Mapping[str, NDArray[np.float32]]]) -> None:
        self._batches = batches

    def get_next(self) -> Mapping[str, NDArray[np.float32]] | None:
        """The next feed, ``None`` at the end."""
        return next(self._batches, None)


def _batches(
    calibration: NDArray[np.uint8], preprocessing: Preprocessing, progress: Callable[[int], None] | None
) -> Iterator[Mapping[str, NDArray[np.float32]]]:
    for start in range(0, len(calibration), _BATCH):
        images = calibration[start : start + _BATCH]
        yield {INPUT: normalize(images, preprocessing)}
        if progress is not None:
            progress(len(images))


def _first_convolutions(graph: ir.Model) -> list[str]:
    """Names of the convolutions that read the images."""
    images = graph.graph.inputs[0]
    return [str(use.node.name) for use in images.uses() if use.node.op_type == "Conv"]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the quantiser's advice on preprocessing, which it gives through the root logger, from our users."""
    root = logging.getLogger()
    handler, level = logging.NullHandler(), root.level
    root.addHandler(handler)
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
        root.removeHandler(handler)
