"""The parity gate: an exported graph against its checkpoint, every op and the logits, before the file gets its name."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cbn_deploy.errors import ParityError
from cbn_deploy.runtime.signature import INPUT, LOGITS
from export.inputs import REAL, ParityInputs
from export.limits import LIMITS
from export.logit_parity import LogitComparison
from export.op_check import SEED, Progress, TappedModel, in_batches, require_ops
from export.op_parity import OpComparison
from export.op_sites import OpSite
from export.parity_report import ParityReport
from export.sessions import native_kernels, ort_session

__all__ = ["SEED", "Progress", "check_parity"]

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
        allow_rounding: of a network that amplifies float32's rounding towards the limit on logits all by itself, hold
            the logits of real images to a multiple of what it makes of float32 in PyTorch, as those of extremes.

    Raises:
        ParityError: an output differs by more than its limit; the message names the worst node or input.
    """
    ops = [OpComparison(site) for site in sites]
    logits = _gather(model, exported, ops, inputs, progress, allow_rounding)
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
        rounding_allowed=allow_rounding and _amplifies(logits.rounding(logits.real)),
        ops=tuple(op.result() for op in ops),
        limits={name: limit.value for name, limit in LIMITS.items()},
    )
    _require_finite(logits)
    require_ops(report.ops)
    _require_logits(report)
    return report


def _gather(
    model: nn.Module,
    exported: onnx.ModelProto,
    ops: Sequence[OpComparison],
    inputs: ParityInputs,
    progress: Progress | None,
    allow_rounding: bool,
) -> LogitComparison:
    """Run every input through the file, its tapped copy and both eager models; feed ``ops``, return the logits."""
    session = ort_session(exported)
    native = native_kernels(exported)
    fused = None if native is None else ort_session(exported, native)
    tapped = TappedModel(exported, [op.site for op in ops]) if ops else None
    exact = copy.deepcopy(model).double()
    rng = np.random.default_rng(SEED)
    rows: list[tuple[Array, Array, Array]] = []
    fused_rows: list[Array] = []
    for indices in in_batches(len(inputs)) if tapped is None else tapped.batches(inputs):
        images = inputs.batch(indices)
        if tapped is not None:
            tapped.feed(ops, images, [inputs.kind(i) for i in indices], rng)
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
        allow_rounding=allow_rounding,
    )


def _run(session: onnxruntime.InferenceSession, images: NDArray[np.float32]) -> Array:
    logits: Array = session.run([LOGITS], {INPUT: images})[0].astype(np.float64)
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


def _amplifies(rounding: float) -> bool:
    """Whether what float32 costs eager PyTorch on real images leaves a file no room below the limit on logits."""
    return LIMITS["rounding"].value * rounding > LIMITS["logits"].value


def _require_logits(report: ParityReport) -> None:
    worst, rounding, limit = (
        max(report.logits, key=lambda row: row.of_limit),
        report.eager_rounding_real,
        LIMITS["logits"],
    )
    tips_the_scales = worst.of_limit > 1.0 and _amplifies(rounding)
    if not report.rounding_allowed and (rounding > limit.value or tips_the_scales):
        raise ParityError(
            "The network amplifies rounding: on real images its float32 logits differ from float64 by "
            f"{rounding:.2g} of their size in PyTorch alone, where {limit.value:g} is allowed for a file, so no "
            "float32 file can be sure to keep the limit and nothing was written; retrain with a smaller density_scale "
            f"or lr, or add --allow-rounding to be content with {LIMITS['rounding'].value:g} times that and the check "
            "of every node, which passed."
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
