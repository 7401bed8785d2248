"""A benchmark's report as rich tables."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from cbn_deploy.benchmark import Ratio
from cbn_deploy.machine import is_busy
from export.bench.report import BenchReport, CandidateReport, Timing, three_digits

__all__ = ["ratio_text", "render", "runtimes_table"]


def render(report: BenchReport) -> Iterator[RenderableType]:
    """What was measured on what, parity, one table of times a batch size, and how to read them."""
    yield _header(report)
    yield _parity_table(report)
    yield from _skipped(report)
    for batch_size in report.parameters["batch_sizes"]:
        yield _timing_table(report, batch_size)
    if any(timing.device is not None for timing in report.timings):
        yield _device_table(report)
        if any(candidate.clock == "host" for candidate in report.candidates):
            yield Text(
                "Clock host: without a PyTorch for CUDA there are no events; launching is timed too.", style="dim"
            )
    yield Text(
        "Percentiles are over all timed calls. x twin: how many times slower than bn/, the same network with plain "
        "batch norm (random weights; time does not depend on them), in the same runtime. x paper: how many times "
        "faster than eager PyTorch with the paper's formula. Both: median of the ratios within rounds, 10-90 % "
        "interval in brackets.",
        style="dim",
    )
    if is_busy(report.machine):
        yield Text(
            f"Other programs were running (load average {report.machine['load_average']:.1f} on "
            f"{report.machine['available_cpus']} CPUs): trust the ratios more than the times, and the intervals most.",
            style="yellow",
        )


def runtimes_table(rows: list[tuple[str, str, str | None]]) -> Table:
    """For ``--list``: (name, title, why it cannot run here or ``None``)."""
    table = _table("Runtimes")
    for heading in ("name", "what it is", "here"):
        table.add_column(heading, overflow="fold")
    for name, title, missing in rows:
        table.add_row(name, title, "[green]yes[/]" if missing is None else escape(missing))
    return table


def _header(report: BenchReport) -> Text:
    model, machine, parameters = report.model, report.machine, report.parameters
    size = " x ".join(map(str, model["input"]))
    return Text(
        f"{model['file']}: {model['architecture']}, M = {model['components']}, input {size}, "
        f"{parameters['precision']}\n"
        f"{machine['cpu']}, {machine['available_cpus']} CPUs; threads {parameters['threads']}, "
        f"rounds {parameters['rounds']}; {machine['os']}, Python {machine['python']}",
    )


def _parity_table(report: BenchReport) -> Table:
    table = _table(f"Parity with float64 on {report.parameters['images']}")
    table.add_column("candidate", no_wrap=True)
    table.add_column("what computes it", overflow="fold")
    table.add_column("largest error", justify="right", no_wrap=True)
    table.add_column("of limit", justify="right", no_wrap=True)
    table.add_column("result", overflow="fold")
    for candidate in report.candidates:
        if candidate.status == "skipped":
            continue
        error, share = "", ""
        if candidate.parity is not None:
            error, share = f"{candidate.parity.max_difference:.1e}", f"{candidate.parity.of_limit:.1%}"
        # OpenVINO's version goes on with commit and branch; the JSON has all of it.
        runtime = f"{candidate.title} {candidate.version.partition('-')[0]}"
        table.add_row(candidate.name, runtime, error, share, _result(candidate))
    return table


def _skipped(report: BenchReport) -> Iterator[Text]:
    """One line a reason, not one a candidate: without a GPU there are many."""
    names: dict[str, list[str]] = {}
    for candidate in report.candidates:
        if candidate.status == "skipped":
            names.setdefault(str(candidate.reason), []).append(candidate.name)
    for reason, skipped in names.items():
        yield Text(f"skipped {', '.join(skipped)}: {reason}", style="yellow")


def _result(candidate: CandidateReport) -> Text:
    if candidate.status == "measured":
        return Text("agrees", style="green")
    return Text(f"{candidate.status}: {candidate.reason}", style="red")


def _timing_table(report: BenchReport, batch_size: int) -> Table:
    table = _table(f"Batch size {batch_size}: milliseconds a batch")
    table.add_column("candidate", no_wrap=True)
    for heading in ("p50", "p90", "p99", "IQR", "img/s", "x twin", "x paper"):
        table.add_column(heading, justify="right", no_wrap=True)
    for timing in report.timings:
        if timing.batch_size == batch_size:
            style = "" if report.candidate(timing.candidate).network == "cbn" else "dim"
            table.add_row(*_timing_row(timing), style=style)
    return table


def _device_table(report: BenchReport) -> Table:
    table = _table("On the device alone: milliseconds a batch, without copies")
    table.add_column("candidate", no_wrap=True)
    for heading in ("clock", "batch", "p50", "p90", "img/s", "x twin"):
        table.add_column(heading, justify="right", no_wrap=True)
    for timing in report.timings:
        device = timing.device
        if device is not None:
            ratio = "" if timing.device_times_twin is None else f"{timing.device_times_twin:.2f}"
            times = [three_digits(device.median), three_digits(device.p90), f"{device.images_per_second:.0f}"]
            clock = str(report.candidate(timing.candidate).clock)
            table.add_row(timing.candidate, clock, str(timing.batch_size), *times, ratio)
    return table


def _timing_row(timing: Timing) -> list[str]:
    latency = timing.latency
    milliseconds = [three_digits(v) for v in (latency.median, latency.p90, latency.p99, latency.iqr)]
    images_per_second = f"{latency.images_per_second:.0f}"
    ratios = [ratio_text(timing.times_twin), ratio_text(timing.speedup_over_paper)]
    return [timing.candidate, *milliseconds, images_per_second, *ratios]


def ratio_text(ratio: Ratio | None) -> str:
    """As wide for large ratios as for small ones."""
    if ratio is None:
        return ""
    p10, p90 = (f"{bound:.{0 if bound >= 9.95 else 1}f}" for bound in (ratio.p10, ratio.p90))
    return f"{ratio.median:.{1 if ratio.median >= 9.995 else 2}f} ({p10}-{p90})"


def _table(title: str) -> Table:
    """Narrow enough for the tables of times to fit 80 columns."""
    return Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 0), pad_edge=False)
