"""Lower a graph's precision and prove it: every node of the op by its own limit, the rest by the accuracy gate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import nn

from cbn_deploy.data import ImageSet
from cbn_deploy.runtime.description import ModelDescription
from cbn_deploy.runtime.preprocessing import normalize
from cbn_deploy.runtime.signature import INPUT, LOGITS
from cbn_deploy.training.test_set import doubt_about, find_test_set
from export.inputs import ParityInputs
from export.op_check import SEED, Progress, check_ops
from export.op_sites import find_sites
from export.passes.to_sixteen_bits import ToSixteenBitsPass
from export.precision.accuracy import DEFAULT_MAX_DROP, AccuracyReport, compare, require_accuracy, require_finite
from export.precision.calibration import Calibration, calibration_images, choose_calibration
from export.precision.emulation import ARITHMETIC, emulate
from export.precision.fold import fold_batch_norm
from export.precision.images import digest
from export.precision.int8 import METHOD, quantize_int8
from export.precision.report import CalibrationRecord, EmulationRecord, PrecisionReport
from export.precision.same_graph import check_types, require_same_graph
from export.sessions import native_kernels, ort_session
from export.to_onnx import inline

__all__ = ["Lowered", "PrecisionRequest", "lower_precision"]

_BATCH = 32
_SIXTEEN_BITS = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}

Pixels = NDArray[np.uint8]
Logits = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class PrecisionRequest:
    """What to make, and what to judge it by.

    Attributes:
        precision: "int8", "fp16" or "bf16".
        data: where the labelled test images are (:func:`cbn_deploy.training.test_set.find_test_set`).
        calibration: folder of images that set the ranges of int8; ``None``: the training images of ``data``.
        max_drop: points of balanced top-1 that the file may lose.
        inline: write the op's body in place of its nodes.
    """

    precision: Literal["int8", "fp16", "bf16"]
    data: str
    calibration: Path | None = None
    max_drop: float = DEFAULT_MAX_DROP
    inline: bool = False


@dataclass(frozen=True, kw_only=True)
class Lowered:
    """The proved graph.

    Attributes:
        graph: to be described and written.
        runnable: what a CPU runs: the same graph, or the emulation of a bfloat16 one.
        report: what was measured.
    """

    graph: ir.Model
    runnable: onnx.ModelProto
    report: PrecisionReport


def check_request(request: PrecisionRequest, description: ModelDescription) -> None:
    """Raise now what :func:`lower_precision` would raise about missing images later.

    Raises:
        DataError: no test or calibration images where the request says.
    """
    find_test_set(description, request.data)
    if request.precision == "int8":
        calibration_images(description, request.calibration, request.data)


def lower_precision(
    graph: ir.Model,
    model: nn.Module,
    description: ModelDescription,
    request: PrecisionRequest,
    inputs: int,
    progress: Progress | None = None,
) -> Lowered:
    """Lower the precision of ``graph``, which stays as it is.

    Args:
        graph: the float32 graph with the op's nodes and their functions.
        model: the checkpoint's own network in eval mode, float32.
        description: of the model.
        request: see :class:`PrecisionRequest`.
        inputs: how many inputs the nodes of the op are checked on.
        progress: called with (images done, images in all).

    Raises:
        DataError: test or calibration images are missing, unreadable or the same.
        ParityError: a node of the op exceeds its limit, or the file loses too much accuracy.
    """
    images = find_test_set(description, request.data)
    test = _TestSet(images, description)
    steps = _Steps(progress)
    steps.plan(2 * len(test) + inputs)
    float32, digests = test.logits_of_checkpoint(model, steps)
    calibration = None
    if request.precision == "int8":
        calibration = choose_calibration(description, request.calibration, request.data, digests)
        steps.plan(len(calibration.images))
        lowered = quantize_int8(fold_batch_norm(graph), calibration.images, description.preprocessing, steps.advance)
    else:
        lowered = fold_batch_norm(graph)
        ToSixteenBitsPass(_SIXTEEN_BITS[request.precision])(lowered)
    final = inline(lowered) if request.inline else lowered
    runnable, emulation = _runnable(final, request.precision)
    checked = ParityInputs(description.preprocessing, test.some(inputs // 2), inputs, SEED)
    before = steps.done
    ops = check_ops(
        _runnable(lowered, request.precision)[0] if request.inline else runnable,
        find_sites(lowered),
        checked,
        lambda done, _total: steps.advance(before + done - steps.done),
    )
    found, kernel_path = test.logits_of_file(runnable, steps)
    report = PrecisionReport(
        precision=request.precision,
        runtime=f"onnxruntime {onnxruntime.__version__}",
        kernel_path=kernel_path,
        emulation=emulation,
        calibration=None if calibration is None else _record(calibration),
        accuracy=_judge(float32, found, test, request),
        test_set_doubt=doubt_about(description, images, request.data),
        inputs=len(checked),
        real_images=checked.real_count,
        ops=ops,
    )
    return Lowered(graph=final, runnable=runnable, report=report)


def _runnable(graph: ir.Model, precision: str) -> tuple[onnx.ModelProto, EmulationRecord | None]:
    """What a CPU can run of ``graph``; the record if it is not the graph itself."""
    file = ir.serde.serialize_model(graph)
    if precision != "bf16":
        return file, None
    check_types(file)
    emulation = emulate(file)
    return emulation, EmulationRecord(arithmetic=ARITHMETIC, rounded=require_same_graph(file, emulation))


class _Steps:
    """How many images of how many have been through one stage or another."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._total = 0
        self.done = 0

    def plan(self, images: int) -> None:
        self._total += images

    def advance(self, images: int) -> None:
        self.done += images
        if self._progress is not None:
            self._progress(min(self.done, self._total), self._total)


class _TestSet:
    """Labelled test images through the checkpoint and through the file, in the same batches."""

    def __init__(self, images: ImageSet, description: ModelDescription) -> None:
        self._images = images
        self._preprocessing = description.preprocessing
        self.labels = images.labels
        self.class_counts = description.class_counts

    def __len__(self) -> int:
        return len(self._images)

    def some(self, count: int) -> Pixels:
        """Up to ``count`` images, evenly spread: uint8 (n, H, W, 3)."""
        chosen = np.unique(np.linspace(0, len(self) - 1, min(count, len(self))).round().astype(int))
        return np.stack([self._images.resized(int(i), self._preprocessing) for i in chosen])

    def logits_of_checkpoint(self, model: nn.Module, steps: _Steps) -> tuple[Logits, set[bytes]]:
        """(n, K), and what tells the images from others."""
        logits: list[Logits] = []
        digests: set[bytes] = set()
        with torch.inference_mode():
            for batch in self._batches():
                digests.update(digest(image) for image in batch)
                images = torch.from_numpy(normalize(batch, self._preprocessing))
                logits.append(model(images).numpy())
                steps.advance(len(batch))
        return np.concatenate(logits), digests

    def logits_of_file(self, exported: onnx.ModelProto, steps: _Steps) -> tuple[Logits, str]:
        """(n, K) by the kernels that a server's CPU would use, and which those are."""
        native = native_kernels(exported)
        session = ort_session(exported, native)
        logits = []
        for batch in self._batches():
            images = normalize(batch, self._preprocessing)
            logits.append(session.run([LOGITS], {INPUT: images})[0])
            steps.advance(len(batch))
        return np.concatenate(logits), "portable" if native is None else "fused"

    def _batches(self) -> Iterator[Pixels]:
        for start in range(0, len(self), _BATCH):
            indices = range(start, min(start + _BATCH, len(self)))
            yield np.stack([self._images.resized(i, self._preprocessing) for i in indices])


def _judge(float32: Logits, found: Logits, test: _TestSet, request: PrecisionRequest) -> AccuracyReport:
    require_finite(float32, found, request.precision)
    name = Path(request.data).resolve().name
    report = compare(float32, found, test.labels, test.class_counts, test_set=name, max_drop=request.max_drop)
    require_accuracy(report, request.precision)
    return report


def _record(calibration: Calibration) -> CalibrationRecord:
    return CalibrationRecord(
        source=calibration.source,
        images=len(calibration.images),
        in_test_set=calibration.in_test_set,
        sha256=calibration.sha256,
        method=METHOD,
    )
