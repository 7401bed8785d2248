"""The parity gate: an exported graph against its checkpoint, every op and the logits, before the file gets its name."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cbn_deploy.errors import ParityError
from cbn_deploy.native_library import NativeLibrary, native_library
from export.inputs import REAL, ParityInputs
from export.limits import LIMITS
from export.logit_parity import LogitComparison
from export.op import DOMAIN
from export.op_parity import OpComparison
from export.op_sites import OpSite, tap
from export.parity_report import ParityReport
from export.to_onnx import INPUT_NAME, OUTPUT_NAME

__all__ = ["SEED", "Progress", "check_parity"]

SEED = 20260
Progress = Callable[[int, int], None]

# What a batch's tapped activations may take.
_BATCH_BYTES = 128 * 2**20
_BATCH = 16
_SINGLES = 16

Array = NDArray[np.float64]


def check_parity(
    model: nn.Module,
    exported: onnx.ModelProto,
    sites: Sequence[OpSite],
    inputs: ParityInputs,
    progress: Progress | None = None,
    *,
    allow_rounding: bool = False,
) -> ParityReport:
    """Compare and raise, or return what was measured.

    Args:
        model: the checkpoint's own network in eval mode, float32, not frozen: freezing is under test too.
        exported: the graph that is to become the file.
        sites: where the op is in it (of the graph before inlining, for a flat one).
        inputs: what to feed it.
        progress: called with (inputs done, inputs in all).
        allow_rounding: of a network that amplifies float32's rounding beyond the limit on logits all by itself, judge
            every node, which needs no allowance, and not the logits.

    Raises:
        ParityError: an output differs by more than its limit; the message names the worst node or input.
    """
    ops = [OpComparison(site) for site in sites]
    logits = _gather(model, exported, ops, inputs, progress)
    agreement, _ = logits.top1(logits.finite)
    report = ParityReport(
        runtime=f"onnxruntime {onnxruntime.__version__}",
        inputs=len(inputs),
        real_images=inputs.real_count,
        seed=SEED,
        top1_agreement=agreement,
        ties=logits.top1(logits.real)[1],
        undecided_extremes=logits.top1(~logits.real)[1],
        eager_rounding_real=logits.rounding(logits.real),
        eager_rounding_extremes=logits.rounding(~logits.real),
        overflows=int((~logits.finite).sum()),
        logits=logits.rows(),
        logits_judged=not allow_rounding or logits.rounding(logits.real) <= LIMITS["logits"].value,
        ops=tuple(op.result() for op in ops),
        limits={name: limit.value for name, limit in LIMITS.items()},
    )
    _require_finite(logits)
    _require_ops(report)
    if report.logits_judged:
        _require_logits(report)
    return report


def _gather(
    model: nn.Module,
    exported: onnx.ModelProto,
    ops: Sequence[OpComparison],
    inputs: ParityInputs,
    progress: Progress | None,
) -> LogitComparison:
    """Run every input through the file, its tapped copy and both eager models; feed ``ops``, return the logits."""
    session = _session(exported)
    native = native_library() if any(node.domain == DOMAIN for node in exported.graph.node) else None
    fused = None if native is None else _session(exported, native)
    tapped = _session(tap(exported, [op.site for op in ops])) if ops else None
    exact = copy.deepcopy(model).double()
    rng = np.random.default_rng(SEED)
    rows: list[tuple[Array, Array, Array]] = []
    fused_rows: list[Array] = []
    for indices in _batches(inputs, tapped):
        images = inputs.batch(indices)
        if tapped is not None:
            _feed(ops, tapped, images, [inputs.kind(i) for i in indices], rng)
        tensor = torch.from_numpy(images)
        rows.append((_run(session, images), _eager(model, tensor), _eager(exact, tensor.double())))
        if fused is not None:
            fused_rows.append(_run(fused, images))
        if progress is not None:
            progress(indices[-1] + 1, len(inputs))
    singles = np.unique(np.linspace(0, len(inputs) - 1, _SINGLES).round().astype(np.int64))
    found, eager32, eager64 = (np.concatenate(parts) for parts in zip(*rows, strict=True))
    return LogitComparison(
        kinds=np.array([inputs.kind(i) for i in range(len(inputs))]),
        exported=found,
        single=np.concatenate([_run(session, inputs.batch([int(i)])) for i in singles]),
        single_indices=singles,
        fused=np.concatenate(fused_rows) if fused_rows else None,
        eager32=eager32,
        eager64=eager64,
    )


def _feed(
    ops: Sequence[OpComparison],
    tapped: onnxruntime.InferenceSession,
    images: NDArray[np.float32],
    kinds: Sequence[str],
    rng: np.random.Generator,
) -> None:
    names = [output.name for output in tapped.get_outputs()]
    values = dict(zip(names, tapped.run(names, {INPUT_NAME: images}), strict=True))
    # A model whose first layer is the op has its input among the values it reads.
    values[INPUT_NAME] = images
    for op in ops:
        op.compare(values, kinds, rng)


def _batches(inputs: ParityInputs, tapped: onnxruntime.InferenceSession | None) -> Iterator[list[int]]:
    """Batches of 2 to 16, as many as the tapped activations' memory allows."""
    size = _BATCH
    if tapped is not None:
        per_image = sum(array.nbytes for array in tapped.run(None, {INPUT_NAME: inputs.batch([0])}))
        size = int(np.clip(_BATCH_BYTES // per_image, 2, _BATCH))
    for start in range(0, len(inputs), size):
        yield list(range(start, min(start + size, len(inputs))))


def _session(model: onnx.ModelProto, native: NativeLibrary | None = None) -> onnxruntime.InferenceSession:
    """The model on the CPU: by the op's standard-ops bodies, or by the kernels of ``native``."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # torch's threads work in turn with these; spinning ones would only take the cores from them.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if native is not None:
        options.register_custom_ops_library(str(native.path))
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _run(session: onnxruntime.InferenceSession, images: NDArray[np.float32]) -> Array:
    logits: Array = session.run([OUTPUT_NAME], {INPUT_NAME: images})[0].astype(np.float64)
    return logits


def _eager(model: nn.Module, images: Tensor) -> Array:
    with torch.inference_mode():
        logits: Array = model(images).double().numpy()
    return logits


def _require_finite(logits: LogitComparison) -> None:
    broken = int((~logits.finite & (logits.kinds == REAL)).sum())
    if broken or not logits.finite.any():
        raise ParityError(
            f"The checkpoint's own logits are not finite on {broken or 'any'} of the parity inputs, so nothing was "
            "written; the training run diverged, retrain with a lower lr."
        )


def _require_ops(report: ParityReport) -> None:
    worst = max(report.ops, key=lambda op: op.of_limit, default=None)
    if worst is not None and worst.of_limit > 1.0:
        raise ParityError(
            f"The exported node {worst.layer} ({worst.op_type}) differs from the paper's formula by "
            f"{worst.max_error:.3g}, {worst.of_limit:.3g} times what float32 rounding explains (worst input: "
            f"{worst.worst_input}), so nothing was written; try another version than {report.runtime} and report it."
        )


def _require_logits(report: ParityReport) -> None:
    worst = max(report.logits, key=lambda row: row.of_limit)
    if report.eager_rounding_real > LIMITS["logits"].value:
        raise ParityError(
            "The network amplifies rounding: on real images its float32 logits differ from float64 by "
            f"{report.eager_rounding_real:.2g} of their size where {LIMITS['logits'].value:g} is allowed, so no "
            "float32 file can keep the limit and nothing was written; retrain with a smaller density_scale or lr, or "
            "add --allow-rounding to be content with the check of every node, which passed."
        )
    if worst.of_limit > 1.0:
        raise ParityError(
            f"The exported logits differ from {worst.reference} by {worst.max_error:.3g}, {worst.of_limit:.3g} times "
            f"the limit ({worst.group}, worst input: {worst.worst_input}), so nothing was written; try another version "
            f"than {report.runtime} and report it."
        )
    if report.top1_agreement < 1.0:
        raise ParityError(
            f"The exported model's top-1 agrees with the checkpoint on only {report.top1_agreement:.2%} of "
            f"{report.inputs} inputs, so nothing was written; report it with the checkpoint."
        )
