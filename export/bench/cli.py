"""``cbn-bench``: options, checks before minutes of work, progress, and where the results go."""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer
from rich.console import Console
from rich.progress import BarColumn, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from cbn_deploy.atomic import atomic_path, atomic_write_bytes, check_writable
from cbn_deploy.cli import run_cli
from cbn_deploy.cli.picture_format import picture_format
from cbn_deploy.errors import CheckpointError, OutputError, RuntimeUnavailableError, SettingsError
from cbn_deploy.runtime.factory import available_cpus

if TYPE_CHECKING:
    from cbn_deploy.benchmark import Progress
    from export.bench.report import BenchReport

__all__ = ["app", "main"]

_MAX_BATCH_SIZE = 4096
_MAX_ROUNDS = 10_000
_STAGES = {
    "preparing": "Exporting and loading",
    "parity": "Comparing with the checkpoint (torch.compile compiles here)",
    "timing": "Timing",
}

app = typer.Typer(add_completion=False)


@app.command(
    epilog="Examples:\n\n"
    "  cbn-bench runs/digits-lt/model.pt\n\n"
    "  cbn-bench model.pt --runtimes eager,onnxruntime,openvino --batch-sizes 1,16 --threads 1\n\n"
    "  cbn-bench model.pt --rounds 100 --json bench.json --plot bench.png\n\n"
    "  cbn-bench --list"
)
def bench(
    model: Annotated[
        Optional[Path],  # noqa: UP045 - typer evaluates annotations on Python 3.10 too
        typer.Argument(metavar="MODEL.pt", help="Checkpoint made by cbn-train.", show_default=False),
    ] = None,
    runtimes: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="LIST", help="Names separated by commas; --list shows them.", show_default="all"),
    ] = None,
    batch_sizes: Annotated[str, typer.Option(metavar="LIST", help="Images in a call, separated by commas.")] = "1,8,32",
    threads: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(metavar="N", help="Threads, the same for every runtime.", show_default="all CPUs"),
    ] = None,
    rounds: Annotated[int, typer.Option(metavar="N", help="Interleaved rounds for each batch size.")] = 30,
    json: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(metavar="FILE", help="Write the report, every timed call included."),
    ] = None,
    plot: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(metavar="FILE", help="Write a bar chart (.png, .svg or .pdf)."),
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="List the runtimes, and why one cannot run here.")] = False,
) -> None:
    """Compare a CBN model with itself in other runtimes and with its batch-norm twin.

    Every candidate's logits are compared with the checkpoint in float64 first; one that disagrees is reported and not
    timed. Then all are timed in interleaved rounds, with the same number of threads.
    """
    if list_:
        _print_runtimes()
        return
    if model is None:
        raise CheckpointError("Say which model to measure: cbn-bench MODEL.pt (cbn-bench --list shows the runtimes).")
    sizes = _integers("--batch-sizes", batch_sizes, _MAX_BATCH_SIZE)
    _check_range("--rounds", rounds, _MAX_ROUNDS)
    _check_range("--threads", threads, available_cpus())
    _check_outputs(model, json, plot)
    # torch and onnx take seconds to import; --help and wrong options should not.
    from export.bench.candidates import RUNTIMES
    from export.bench.run import BenchOptions, bench_checkpoint

    names = tuple(RUNTIMES) if runtimes is None else _names("--runtimes", runtimes, tuple(RUNTIMES))
    options = BenchOptions(runtimes=names, batch_sizes=sizes, threads=threads, rounds=rounds)
    with _progress() as progress:
        report = bench_checkpoint(model, options, progress)
    _print_report(report)
    _write(report, json, plot)


def main() -> None:
    """Console script."""
    run_cli(app)


def _print_runtimes() -> None:
    from export.bench.candidates import RUNTIMES
    from export.bench.table import runtimes_table

    rows = [(name, runtime.title, runtime.missing()) for name, runtime in RUNTIMES.items()]
    Console().print(runtimes_table(rows))


def _print_report(report: BenchReport) -> None:
    from export.bench.table import render

    console = Console()
    for part in render(report):
        console.print(part)


def _write(report: BenchReport, json: Path | None, plot: Path | None) -> None:
    from export.bench.report import to_json

    console = Console(soft_wrap=True)
    if json is not None:
        atomic_write_bytes(json, to_json(report).encode())
        console.print(f"Report: {json}", markup=False, highlight=False)
    if plot is not None:
        from export.bench.plot import save_plot

        with atomic_path(plot) as temporary:
            save_plot(report, temporary, picture_format(plot))
        console.print(f"Plot: {plot}", markup=False, highlight=False)


def _items(option: str, text: str) -> list[str]:
    items = [item.strip() for item in text.split(",") if item.strip()]
    if not items:
        raise SettingsError(f"{option} is empty; give one or more values separated by commas.")
    return list(dict.fromkeys(items))


def _names(option: str, text: str, known: Sequence[str]) -> tuple[str, ...]:
    items = _items(option, text)
    for item in items:
        if item not in known:
            close = difflib.get_close_matches(item, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"choose from {', '.join(known)}."
            raise SettingsError(f"{option} has no {item!r}; {hint}")
    return tuple(name for name in known if name in items)


def _integers(option: str, text: str, highest: int) -> tuple[int, ...]:
    values = []
    for item in _items(option, text):
        try:
            value = int(item)
        except ValueError:
            raise SettingsError(f"{option} takes whole numbers separated by commas, not {item!r}.") from None
        _check_range(option, value, highest)
        values.append(value)
    return tuple(dict.fromkeys(values))


def _check_range(option: str, value: int | None, highest: int) -> None:
    if value is not None and not 1 <= value <= highest:
        raise SettingsError(f"{option} must be between 1 and {highest}, got {value}.")


def _check_outputs(model: Path, json: Path | None, plot: Path | None) -> None:
    """Refuse an impossible output before minutes of work, not after."""
    outputs = [path for path in (json, plot) if path is not None]
    for path in outputs:
        if path.is_dir():
            raise OutputError(f"{path} is a folder; give the name of the file to write.")
        if path.resolve() == model.resolve():
            raise OutputError(f"{path} is the checkpoint itself; choose another name.")
    if len({path.resolve() for path in outputs}) < len(outputs):
        raise OutputError(f"--json and --plot both name {outputs[0]}; choose two names.")
    if plot is not None:
        picture_format(plot)
        if importlib.util.find_spec("matplotlib") is None:
            raise RuntimeUnavailableError("--plot needs matplotlib; install it with: pip install 'cbn-deploy[train]'.")
    if not model.is_file():  # before a folder is made for the results
        raise CheckpointError(f"{model} does not exist; give the path of a model.pt made by cbn-train.")
    for path in outputs:
        check_writable(path.parent)


@contextmanager
def _progress() -> Iterator[Progress]:
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    console = Console(stderr=True)
    # No refreshing thread: it would draw while a call is being timed.
    with RichProgress(
        *columns,
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        auto_refresh=False,
        disable=not console.is_terminal,
    ) as bar:
        tasks: dict[str, TaskID] = {}

        def report(stage: str, fraction: float) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(_STAGES[stage], total=1.0)
            bar.update(tasks[stage], completed=fraction)
            bar.refresh()

        yield report
