"""Checkpoint or network in, ``model.onnx`` out: freeze, convert, prove, describe, write; or raise and leave nothing."""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import nn

from cbn_deploy import __version__
from cbn_deploy.atomic import atomic_path, check_writable
from cbn_deploy.checkpoint import file_sha256, load_checkpoint, load_model
from cbn_deploy.errors import DataError, OutputError
from cbn_deploy.machine import package_versions
from cbn_deploy.norm import freeze
from cbn_deploy.runtime.description import ModelDescription
from export.familiarity import add_familiarity
from export.inputs import ParityInputs, default_count, read_images
from export.op_nodes import cbn_nodes
from export.op_sites import find_sites
from export.parity import SEED, Progress, check_parity
from export.parity_report import ParityReport
from export.passes import DescribePass
from export.precision import DEFAULT_MAX_DROP, PrecisionReport, PrecisionRequest, check_request, lower_precision
from export.prune_components import PruningReport, prune_components
from export.self_test import record_self_test
from export.to_onnx import build_graph, inline

__all__ = ["ExportOptions", "ExportResult", "export_checkpoint", "export_network"]

_TOOLS = ("torch", "onnx", "onnx-ir", "onnxscript", "onnxruntime")


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What kind of file to write.

    Attributes:
        inline: write the op's standard-ops body in place of its nodes, for readers without function support.
        with_posterior: every layer's posterior becomes an output ``posterior.<layer>``.
        data: folder of images for the parity gate, in place of those that the checkpoint carries; for a precision other
            than fp32 the labelled test images of the accuracy gate, found as ``cbn-eval`` does, or ``digits``.
        precision: "fp32", "fp16" or "bf16" (weights and activations) or "int8" (convolutions).
        calibration: folder of images that set the ranges of int8; ``None``: the training images of ``data``.
        max_drop: points of balanced top-1 that a file of lower precision may lose.
        inputs: how many inputs the parity gate uses; ``None``: 256, and down to 64 for larger images
            (:func:`export.inputs.default_count`).
        allow_rounding: export a network that amplifies float32's own rounding beyond the limit on logits, if every node
            keeps its limit and the logits a multiple of that rounding (:data:`export.limits.LIMITS`).
        prune_threshold: leave out the components whose prior is at or below this and which no pixel of a real image
            claims (:mod:`export.prune_components`); ``None``: keep all.
    """

    inline: bool = False
    with_posterior: bool = False
    data: Path | None = None
    precision: Literal["fp32", "fp16", "bf16", "int8"] = "fp32"
    calibration: Path | None = None
    max_drop: float = DEFAULT_MAX_DROP
    inputs: int | None = None
    allow_rounding: bool = False
    prune_threshold: float | None = None


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """What was written.

    Attributes:
        path: the file.
        parity: what the gate measured: parity for fp32, accuracy for a lower precision.
        description: what the file says about itself.
        forms: op form -> number of nodes, before any inlining.
        inlined: whether the file holds their bodies instead.
        nodes: number of nodes in the file's graph.
        size: of the file, in bytes.
        pruning: what was pruned, if that was asked for.
    """

    path: Path
    parity: ParityReport | PrecisionReport
    description: ModelDescription
    forms: Mapping[str, int]
    inlined: bool
    nodes: int
    size: int
    pruning: PruningReport | None = None


def export_checkpoint(
    checkpoint: Path, output: Path, options: ExportOptions | None = None, progress: Progress | None = None
) -> ExportResult:
    """Export ``checkpoint`` to ``output``, which appears only after the parity gate has passed.

    Args:
        checkpoint: a ``model.pt``.
        output: the ``.onnx`` file to write; one that exists is replaced.
        options: see :class:`ExportOptions`.
        progress: called with (images done, images in all) of the gate.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        DataError: ``options.data`` or ``options.calibration`` holds no usable image.
        ParityError: the exported graph's answers differ from the checkpoint's, its accuracy is too low, or pruning
            changes the answers.
        OutputError: ``output`` cannot be written.
    """
    checkpoint, output = Path(checkpoint), Path(output)
    loaded = load_checkpoint(checkpoint)
    description = dataclasses.replace(loaded.description, source_sha256=file_sha256(checkpoint))
    if output.resolve() == checkpoint.resolve():
        raise OutputError(f"{output} is the checkpoint itself; choose another output name.")
    samples = None if loaded.sample_images is None else loaded.sample_images.numpy()
    return _export(_Subject(load_model(loaded), description, samples), output, options or ExportOptions(), progress)


def export_network(
    model: nn.Module,
    description: ModelDescription,
    output: Path,
    options: ExportOptions | None = None,
    *,
    images: NDArray[np.uint8] | None = None,
    progress: Progress | None = None,
) -> ExportResult:
    """Export a network of your own, through the same gate and to the same kind of file as a checkpoint.

    Args:
        model: images (B, 3, H, W) float32 -> logits (B, K); any torch network that ``torch.export`` can trace, with
            mixture layers, as :func:`cbn_deploy.norm.convert_batchnorm` makes them, or without. It is left as it is.
        description: class names, preprocessing (with H and W) and the rest; ``architecture`` is any name,
            ``source_sha256`` whatever tells you where the network is from.
        output: the ``.onnx`` file to write; one that exists is replaced.
        options: see :class:`ExportOptions`.
        images: uint8 (n, H, W, 3), real images that were not trained on, for the gate and for what the server compares
            strangers' images with; ``None``: extremes alone, unless ``options.data`` names a folder.
        progress: called with (images done, images in all) of the gate.

    Raises:
        ValueError: the network's logits or ``images`` do not fit the description.
        DataError, ParityError, OutputError: as :func:`export_checkpoint`.
    """
    subject = _Subject(copy.deepcopy(model).cpu().eval(), description, images)
    _check_fit(subject)
    return _export(subject, Path(output), options or ExportOptions(), progress)


@dataclass(frozen=True)
class _Subject:
    """What is exported.

    Attributes:
        model: float32, on the CPU, in eval mode.
        description: as far as it is known before.
        images: uint8 (n, H, W, 3), real held-out images at model size, if there are any.
    """

    model: nn.Module
    description: ModelDescription
    images: NDArray[np.uint8] | None


def _check_fit(subject: _Subject) -> None:
    preprocessing, classes = subject.description.preprocessing, len(subject.description.class_names)
    size = (preprocessing.height, preprocessing.width)
    with torch.inference_mode():
        logits = subject.model(torch.zeros(2, 3, *size))
    if not isinstance(logits, torch.Tensor) or tuple(logits.shape) != (2, classes):
        found = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise ValueError(
            f"the network must give logits (2, {classes}) for two images of {classes} classes, got {found}"
        )
    images = subject.images
    if images is not None and (images.dtype != np.uint8 or images.shape[1:] != (*size, 3)):
        raise ValueError(f"images must be uint8 (n, {size[0]}, {size[1]}, 3), got {images.dtype} {images.shape}")


def _export(subject: _Subject, output: Path, options: ExportOptions, progress: Progress | None) -> ExportResult:
    _check_output(output, subject.model)
    request = _precision_request(options)
    if request is not None:
        check_request(request, subject.description)
    model, pruning = _pruned(subject, options)
    subject = dataclasses.replace(subject, model=model)
    preprocessing = subject.description.preprocessing
    example = torch.zeros(1, 3, preprocessing.height, preprocessing.width)
    graph = build_graph(freeze(model), example, with_posterior=options.with_posterior)
    final, runnable, parity = _prove(graph, subject, options, request, progress)
    description = dataclasses.replace(
        subject.description,
        tool_versions={**subject.description.tool_versions, "cbn-deploy": __version__, **package_versions(_TOOLS)},
        precision=options.precision,
        self_test=record_self_test(model, runnable, preprocessing).to_dict(),
        parity=parity.to_dict() if pruning is None else {**parity.to_dict(), "pruning": pruning.to_dict()},
    )
    description = add_familiarity(description, model, _held_out(subject, options, default_count(preprocessing)))
    DescribePass(description, __version__)(final)
    size = _write(final, output)
    return ExportResult(
        path=output,
        parity=parity,
        description=description,
        forms=Counter(op.form.op_type for op in cbn_nodes(graph)),
        inlined=options.inline,
        nodes=final.graph.num_nodes(),
        size=size,
        pruning=pruning,
    )


def _pruned(subject: _Subject, options: ExportOptions) -> tuple[nn.Module, PruningReport | None]:
    """The network to export; from here on it is what the gates compare with."""
    if options.prune_threshold is None:
        return subject.model, None
    preprocessing = subject.description.preprocessing
    count = default_count(preprocessing) if options.inputs is None else options.inputs
    inputs = ParityInputs(preprocessing, _held_out(subject, options, count), count, SEED)
    return prune_components(subject.model, inputs, options.prune_threshold)


def _precision_request(options: ExportOptions) -> PrecisionRequest | None:
    if options.precision == "fp32":
        return None
    if options.data is None:
        raise DataError(
            f"{options.precision} is judged by its accuracy on labelled test images; say where they are with "
            "--data DIR (or --data digits)."
        )
    return PrecisionRequest(
        precision=options.precision,
        data=str(options.data),
        calibration=options.calibration,
        max_drop=options.max_drop,
        inline=options.inline,
    )


def _prove(
    graph: ir.Model,
    subject: _Subject,
    options: ExportOptions,
    request: PrecisionRequest | None,
    progress: Progress | None,
) -> tuple[ir.Model, onnx.ModelProto, ParityReport | PrecisionReport]:
    """The graph to write, in the precision asked for; what a CPU runs of it; and what its gate measured."""
    model, preprocessing = subject.model, subject.description.preprocessing
    count = default_count(preprocessing) if options.inputs is None else options.inputs
    if request is not None:
        lowered = lower_precision(graph, model, subject.description, request, count, progress)
        return lowered.graph, lowered.runnable, lowered.report
    inputs = ParityInputs(preprocessing, _real_images(subject, options.data, count), count, SEED)
    final = inline(graph) if options.inline else graph
    exported = ir.serde.serialize_model(final)
    parity = check_parity(model, exported, find_sites(graph), inputs, progress, allow_rounding=options.allow_rounding)
    return final, exported, parity


def _check_output(output: Path, model: nn.Module) -> None:
    """Refuse an impossible output before minutes of work, not after."""
    if output.is_dir():
        raise OutputError(f"{output} is a folder; give the name of the .onnx file to write.")
    # Weights dominate a model file.
    weights = sum(tensor.nbytes for tensor in model.state_dict().values())
    check_writable(output.parent, needed_bytes=2 * weights)


def _held_out(subject: _Subject, options: ExportOptions, count: int) -> NDArray[np.uint8]:
    # For a lower precision --data is not a folder of images but a test set.
    return _real_images(subject, options.data if options.precision == "fp32" else None, count)


def _real_images(subject: _Subject, data: Path | None, count: int) -> NDArray[np.uint8]:
    preprocessing = subject.description.preprocessing
    if data is not None:
        return read_images(data, preprocessing, limit=count // 2)
    if subject.images is None:
        return np.empty((0, preprocessing.height, preprocessing.width, 3), np.uint8)
    return subject.images


def _write(graph: ir.Model, output: Path) -> int:
    with atomic_path(output) as temporary:
        temporary.write_bytes(ir.serde.serialize_model(graph).SerializeToString())
        onnx.checker.check_model(temporary, full_check=True)
        return temporary.stat().st_size
