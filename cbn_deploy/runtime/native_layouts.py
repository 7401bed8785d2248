"""Open a model whose nodes of the op run in the native library in the layouts that onnxruntime's convolutions use.

The graph that onnxruntime has optimised for this machine is taken back, rewritten (:mod:`blocked_layout`,
:mod:`channels_last`) and opened again. The result is for this machine and this onnxruntime only: it lives in memory,
never in a file that a user keeps.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from cbn_deploy.runtime.blocked_layout import block_channels, keep_blocked
from cbn_deploy.runtime.channels_last import keep_channels_last

__all__ = ["native_layout_session"]

# How far answers may lie apart, of the largest: sums in another order, and 8-bit numbers that these round otherwise.
_ROUNDING, _TIES = 1e-2, 5e-2
_log = logging.getLogger(__name__)


def native_layout_session(content: bytes, make_options: Callable[[], Any]) -> tuple[Any, int | None]:
    """Open a model whose nodes of the op run in the native library, in onnxruntime's own layouts where that can be.

    Args:
        content: a serialized ModelProto.
        make_options: onnxruntime SessionOptions with the library of the op registered, new ones at every call.

    Returns:
        The InferenceSession, and the channels of a block; ``None``: no node of the op is in the blocked layout, because
        this onnxruntime has none or no node can use it.

    Raises:
        Exception: onnxruntime cannot load the model.
    """
    block = block_channels()
    if block is None and b"QuantizeLinear" not in content:
        return _open(content, make_options()), None
    planar, model = _optimized(content, make_options)
    if model is None:
        return planar, None
    if block is not None and not keep_blocked(model, block):
        block = None
    quantized = keep_channels_last(model)
    if block is None and not quantized:
        return planar, None
    options = make_options()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # done already
    try:
        rewritten = _open(model.SerializeToString(), options)
    except Exception as error:  # noqa: BLE001 - onnxruntime's exceptions share no public base class
        _not_used(error)
        return planar, None
    if not _same_answers(planar, rewritten, _TIES if quantized else _ROUNDING):
        _not_used("this onnxruntime's does not give the same answers")
        return planar, None
    return rewritten, block


def _optimized(content: bytes, make_options: Callable[[], Any]) -> tuple[Any, onnx.ModelProto | None]:
    """A session, and its graph as onnxruntime optimised it for this machine; ``None`` if that cannot be had."""
    try:
        with tempfile.TemporaryDirectory(prefix="cbn-") as folder:
            path = Path(folder) / "optimized.onnx"
            options = make_options()
            options.optimized_model_filepath = str(path)
            return _open(content, options), onnx.load_model_from_string(path.read_bytes())
    except Exception as error:  # noqa: BLE001 - a full disk, or a model that cannot be loaded at all: the next line tells
        planar = _open(content, make_options())
        _not_used(error)
        return planar, None


def _not_used(reason: object) -> None:
    _log.warning("Tensors are reordered around the op, which costs some time: %s.", " ".join(str(reason).split()))


def _open(content: bytes, options: Any) -> Any:
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _same_answers(planar: Any, rewritten: Any, limit: float) -> bool:
    """On one batch of noise: a layout that is not the one we know gives nonsense, not rounding errors."""
    rng = np.random.default_rng(0)
    feeds = {
        value.name: rng.normal(size=[size if isinstance(size, int) else 1 for size in value.shape]).astype(np.float32)
        for value in planar.get_inputs()
    }
    for expected, found in zip(planar.run(None, feeds), rewritten.run(None, feeds), strict=True):
        largest = float(np.abs(expected[np.isfinite(expected)]).max(initial=1e-6))
        if not np.allclose(expected, found, rtol=0.0, atol=limit * largest, equal_nan=True):
            return False
    return True
