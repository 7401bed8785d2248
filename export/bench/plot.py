"""A benchmark's report as one picture: bars of latency, a panel for each batch size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from cbn_deploy.machine import is_busy
from export.bench.report import BenchReport, Timing, three_digits

__all__ = ["draw", "save_plot"]

# Okabe and Ito's blue and orange: told apart under every common colour blindness, and by lightness in grey.
_COLOURS = {"cbn": "#0072B2", "bn": "#E69F00"}
_LABELS = {"cbn": "CBN", "bn": "batch-norm twin"}
_BAR = 0.38
_GREY = "#555555"


def save_plot(report: BenchReport, path: Path, file_format: str) -> None:
    """Write the picture; ``file_format`` is "png", "svg" or "pdf"."""
    figure = draw(report)
    figure.savefig(path, format=file_format, dpi=160)


def draw(report: BenchReport) -> Figure:
    """Bars are medians, whiskers the 10-90 % range of the calls; the label of a CBN bar says how it compares."""
    batch_sizes = sorted({timing.batch_size for timing in report.timings})
    runtimes = _runtimes(report)
    figure = Figure(figsize=(max(9.0, 2.2 + 3.6 * len(batch_sizes)), 1.9 + 0.62 * len(runtimes)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(batch_sizes), sharey=True, squeeze=False)[0]
    for panel, batch_size in zip(panels, batch_sizes, strict=True):
        rows = [timing for timing in report.timings if timing.batch_size == batch_size]
        _draw_panel(panel, report, rows, runtimes)
        panel.set_title(f"batch size {batch_size}: milliseconds a batch", fontsize=10)
    panels[0].set_yticks(range(len(runtimes)), [title for _, title in runtimes])
    panels[0].invert_yaxis()
    figure.legend(handles=_legend_handles(report), loc="outside upper right", ncols=2, frameon=False, fontsize=9)
    model = report.model
    figure.suptitle(
        f"{model['architecture']}, {model['components']} Gaussians a layer, {model['input'][1]} x {model['input'][2]}",
        x=0.01,
        ha="left",
        fontsize=11,
        fontweight="bold",
    )
    figure.supxlabel(_footer(report), fontsize=8, color=_GREY, x=0.01, ha="left")
    return figure


def _footer(report: BenchReport) -> str:
    machine, parameters = report.machine, report.parameters
    load = f", load average {machine['load_average']:.1f}: a busy machine" if is_busy(machine) else ""
    return (
        f"{machine['cpu']}, threads {parameters['threads']}, {parameters['precision']}, rounds {parameters['rounds']}, "
        f"{report.created[:10]}{load}\n"
        "Bar: median, shorter is better; whisker: 10-90 % of calls; in brackets: times the twin's latency, median of "
        "the ratios within rounds."
    )


def _runtimes(report: BenchReport) -> list[tuple[str, str]]:
    """(key, title) of the measured runtimes, in table order."""
    measured = {candidate.runtime: candidate.title for candidate in report.candidates if candidate.status == "measured"}
    return list(measured.items())


def _draw_panel(panel: Any, report: BenchReport, rows: Sequence[Timing], runtimes: list[tuple[str, str]]) -> None:
    positions = {key: index for index, (key, _) in enumerate(runtimes)}
    pairs = {report.candidate(row.candidate).runtime for row in rows if report.candidate(row.candidate).network == "bn"}
    longest = max(row.latency.p90 for row in rows)
    for row in rows:
        candidate = report.candidate(row.candidate)
        shift = (_BAR / 2 if candidate.network == "bn" else -_BAR / 2) if candidate.runtime in pairs else 0.0
        y, latency = positions[candidate.runtime] + shift, row.latency
        panel.barh(y, latency.median, height=_BAR * 0.94, color=_COLOURS[candidate.network])
        whisker = [[max(0.0, latency.median - latency.p10)], [max(0.0, latency.p90 - latency.median)]]
        panel.errorbar(latency.median, y, xerr=whisker, color="black", linewidth=0.9, capsize=2.2)
        panel.text(latency.p90 + 0.02 * longest, y, _label(row), va="center", fontsize=8)
    panel.set_xlim(0, 1.38 * longest)
    panel.tick_params(axis="both", labelsize=9)
    panel.tick_params(axis="y", length=0)
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(axis="x", color="#dddddd", linewidth=0.6)
    panel.set_axisbelow(True)


def _label(row: Timing) -> str:
    latency = three_digits(row.latency.median)
    return latency if row.times_twin is None else f"{latency}  ({row.times_twin.median:.2f}×)"


def _legend_handles(report: BenchReport) -> list[Any]:
    networks = {report.candidate(timing.candidate).network for timing in report.timings}
    return [Patch(color=_COLOURS[network], label=_LABELS[network]) for network in ("cbn", "bn") if network in networks]
