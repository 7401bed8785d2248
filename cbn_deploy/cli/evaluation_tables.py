"""What ``cbn-eval`` found out, as rich tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, TypeVar

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from cbn_deploy.runtime import ModelDescription, SessionInfo
    from cbn_deploy.training.metrics import Calibration, Interval, ShiftedScore
    from cbn_deploy.training.model_evaluation import ModelEvaluation

__all__ = ["tables"]

_Item = TypeVar("_Item")

_SHOWN_CLASSES = 100
_SHOWN_LAYERS = 8


def tables(result: ModelEvaluation, description: ModelDescription, info: SessionInfo) -> Iterator[RenderableType]:
    """Everything that was measured, the summary last, where the eye is when the command ends."""
    yield _per_class(result, description, info)
    if result.mixture:
        yield _mixture(result)
    if result.prior_shift:
        yield _prior_shift(result.prior_shift)
    if result.calibration is not None:
        yield _calibration(result.calibration)
    yield _summary(result)


def _per_class(result: ModelEvaluation, description: ModelDescription, info: SessionInfo) -> Table:
    from cbn_deploy.runtime.description import frequency_order

    runtime = f"{info.runtime} {info.version} ({info.kernel_path})"
    table = Table(title=f"{escape(info.file)} on {result.images} images, {runtime}")
    table.add_column("class", overflow="fold")
    table.add_column("trained on", justify="right")
    table.add_column("group")
    table.add_column("tested on", justify="right")
    table.add_column("recall", justify="right")
    table.add_column("95 % interval", justify="right", no_wrap=True)
    table.add_column("ECE", justify="right")
    counts, scores = description.class_counts, result.scores
    order = frequency_order(counts)
    first, left_out, last = _ends(order, _SHOWN_CLASSES)
    for k in first + last:
        if left_out and k == last[0]:
            table.add_row(f"... {left_out} more, all in --json")
        table.add_row(
            escape(description.class_names[k]),
            str(counts[k]),
            description.shot_groups[k],
            str(scores.per_class_images[k]),
            _percent(scores.per_class[k]),
            _interval(scores.per_class_interval[k]),
            _percent(scores.per_class_ece[k]),
        )
    return table


def _mixture(result: ModelEvaluation) -> Table:
    table = Table(title="The mixture (pixel entropy 1: batch norm in disguise, 0: one Gaussian a pixel)")
    table.add_column("layer", overflow="fold")
    table.add_column("pixel entropy", justify="right")
    table.add_column("dead", justify="right")
    table.add_column("each Gaussian's share of the pixels")
    first, left_out, last = _ends(list(result.mixture), _SHOWN_LAYERS)
    for layer in first + last:
        if left_out and layer == last[0]:
            table.add_row(f"... {left_out} more, all in --json")
        use = result.mixture[layer]
        shares = "  ".join(f"{share:.0%}" for share in use.occupancy)
        table.add_row(escape(layer), f"{use.pixel_entropy:.2f}", f"{use.dead} of {len(use.occupancy)}", shares)
    entropies = [use.pixel_entropy for use in result.mixture.values()]
    dead = sum(use.dead for use in result.mixture.values())
    components = sum(len(use.occupancy) for use in result.mixture.values())
    mean = sum(entropies) / len(entropies)
    table.add_section()
    table.add_row(
        "all", f"{mean:.2f}", f"{dead} of {components}", f"entropy {min(entropies):.2f} to {max(entropies):.2f}"
    )
    return table


def _prior_shift(scores: tuple[ShiftedScore, ...]) -> Table:
    table = Table(title="Under other class priors (backward: what is frequent in training is rare)")
    table.add_column("test prior")
    for column in ("top-1", "corrected", "ECE", "corrected"):
        table.add_column(column, justify="right")
    for score in scores:
        table.add_row(
            "uniform" if score.direction == "uniform" else f"{score.direction} {score.ratio}",
            _percent(score.top1),
            _percent(score.corrected_top1),
            _percent(score.ece),
            _percent(score.corrected_ece),
            end_section=score.direction != "backward" and score.ratio in (1, 2),
        )
    return table


def _calibration(calibration: Calibration) -> Table:
    table = Table(
        title=f"Temperature fitted on {calibration.fit_images} images, judged on the other "
        f"{calibration.held_out_images}, corrected for their class frequencies"
    )
    table.add_column("temperature", justify="right")
    table.add_column("negative log-likelihood", justify="right")
    table.add_column("calibration error", justify="right")
    table.add_row("1", f"{calibration.nll_before:.4f}", _percent(calibration.before.error))
    table.add_row(
        f"[bold]{calibration.temperature:.4f}[/]", f"{calibration.nll_after:.4f}", _percent(calibration.after.error)
    )
    return table


def _summary(result: ModelEvaluation) -> Text:
    scores = result.scores
    carried = "" if result.temperature is None else f" (the file's temperature, {result.temperature:.4g}, is applied)"
    return Text.from_markup(
        f"top-1 [bold]{_percent(scores.top1)}[/] ({_interval(scores.top1_interval)}), "
        f"balanced {_percent(scores.balanced_accuracy)}; many {_percent(scores.many)}, "
        f"medium {_percent(scores.medium)}, few {_percent(scores.few)}\n"
        f"calibration error {_percent(scores.ece)} (many {_percent(scores.many_ece)}, "
        f"medium {_percent(scores.medium_ece)}, few {_percent(scores.few_ece)}; class-wise "
        f"{scores.classwise_ece:.2%}), negative log-likelihood {scores.nll:.4f}{carried}"
    )


def _ends(items: list[_Item], limit: int) -> tuple[list[_Item], int, list[_Item]]:
    """The first ones, how many are left out, the last ones: ``limit`` in all, or everything if that is less."""
    if len(items) <= limit:
        return items, 0, []
    half = limit // 2
    return items[:half], len(items) - 2 * half, items[-half:]


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{fraction:.1%}"


def _interval(ends: Interval | None) -> str:
    return "-" if ends is None else f"{100 * ends[0]:.1f} to {ends[1]:.1%}"
