"""``cbn-train``: train a recipe, look at the data first, list what there is, or compare finished runs."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from cbn_deploy.atomic import atomic_write_bytes, check_writable
from cbn_deploy.cli import run_cli
from cbn_deploy.cli.image_progress import image_progress
from cbn_deploy.cli.picture_format import picture_format
from cbn_deploy.errors import DataError, RankError, RecipeError

if TYPE_CHECKING:
    from cbn_deploy.training import Recipe, TrainingResult
    from cbn_deploy.training.comparison import Comparison
    from cbn_deploy.training.ranks import Ranks

__all__ = ["main"]

_EXAMPLES = """
Examples:

  cbn-train digits-lt

  cbn-train cifar10-lt --data cifar --out runs/c10 --set model=resnet32 --set rho=50 --set seed=1

  cbn-train cifar10-lt --data cifar --out runs/c10 --set model=resnet32 --set rho=50 --set seed=1 --resume

  cbn-train image-folder --data photos --check

  cbn-train cifar10-lt --data cifar --set precision=bf16 --channels-last --compile

  cbn-train cifar10-lt/rho100/cbn-sbn-dpl --data cifar --set epochs=200

  cbn-train cifar10-lt --data cifar --set precision=bf16 --channels-last --cuda-graphs --device-views

  torchrun --nproc-per-node 8 -m cbn_deploy.cli.train cifar10-lt --data cifar

  cbn-train --list; cbn-train --list 'table 3'; cbn-train --list 'cifar10-lt/*/cbn'; cbn-train cifar10-lt --list

  cbn-train --compare runs/photos --plot photos.png   (every finished run in there, the seeds of one recipe together)
"""

_DEVICES = ("auto", "cpu", "cuda")

app = typer.Typer(add_completion=False)


@app.command(epilog=_EXAMPLES)
def train(
    recipe: Annotated[
        str | None,
        typer.Argument(
            help="digits-lt, cifar10-lt, cifar100-lt, image-folder, or an experiment of the paper (--list shows them).",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of the images (the CIFAR files, or train/CLASS/* and test/CLASS/*)."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for the results.", show_default="runs/RECIPE")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change the recipe; --list shows the keys.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on after the last completed epoch in --out.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Examine the data, train nothing; exit code 2 on problems.")
    ] = False,
    list_: Annotated[
        bool,
        typer.Option(
            "--list", help="List the recipes, those that match RECIPE, or the settings of RECIPE if it is a whole name."
        ),
    ] = False,
    compare: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="Compare the finished runs in DIR; may be given several times."),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="With --compare: draw curves and gains by class, a .png, .svg or .pdf."),
    ] = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes that prepare batches; 0 uses this one.")] = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.", show_default="torch's choice")] = None,
    device: Annotated[str, typer.Option(help="auto (CUDA if there is one), cpu or cuda.")] = "auto",
    channels_last: Annotated[
        bool, typer.Option("--channels-last", help="Convolutions see (B, H, W, C) in memory.")
    ] = False,
    compile_: Annotated[bool, typer.Option("--compile", help="Run the network through torch.compile.")] = False,
    cuda_graphs: Annotated[
        bool, typer.Option("--cuda-graphs", help="Record a step on the GPU and replay it: for small networks.")
    ] = False,
    device_views: Annotated[
        bool, typer.Option("--device-views", help="Augment images that fit in memory on the GPU, to the same pixels.")
    ] = False,
) -> None:
    """Train a recipe: model.pt, metrics.jsonl, report.html, report.json and plots in --out."""
    console = Console()
    if list_:
        _list(recipe, settings or [], console)
        return
    execution = _Execution(workers, threads, device, channels_last, compile_, cuda_graphs, device_views)
    if compare:
        of_training = {"--data": data, "--out": out, "--set": settings, "--resume": resume, "--check": check}
        _refuse_with_compare(recipe, [option for option, given in of_training.items() if given], execution)
        _compare(compare, plot, console)
        return
    if plot is not None:
        raise RecipeError("--plot draws what --compare compares; a training draws its pictures in --out.")
    try:
        if device not in _DEVICES:
            raise RecipeError(f"There is no device {device!r}; choose one of {', '.join(_DEVICES)}.")
        chosen = _chosen_recipe(recipe, settings or [])
        _refuse_folder_of_digits(chosen, data)
    except RecipeError:
        if os.environ.get("RANK", "0") == "0":
            raise
        raise typer.Exit(2) from None  # torchrun gave every process the same words: the first one says what is wrong
    if check:
        _check_data(chosen, data, console)
    else:
        out = out or Path("runs") / chosen.name
        _train_on_ranks(_Run(chosen, data, out, settings or [], resume, execution), console)


def main() -> None:
    """Entry point of ``cbn-train``."""
    # torch's OpenMP threads wait for each other by spinning; beside another busy process that stalls every step,
    # and sleeping costs little on an idle machine. Read when torch is first imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    run_cli(app)


def _list(name: str | None, settings: list[str], console: Console) -> None:
    from cbn_deploy.cli.recipe_list import print_recipes, print_settings
    from cbn_deploy.training.catalog import known_names

    if name in known_names():
        print_settings(console, _chosen_recipe(name, settings))
    else:
        print_recipes(console, name)


def _refuse_with_compare(recipe: str | None, options: list[str], execution: _Execution) -> None:
    """What is typed for a training would otherwise do nothing, and say nothing."""
    if recipe is not None:
        raise RecipeError(f"--compare trains nothing, leave out {recipe!r}; another folder takes another --compare.")
    options = options + [word for word in execution.words() if word.startswith("--")]
    if options:
        raise RecipeError(f"--compare trains nothing and reads finished runs alone; leave out {', '.join(options)}.")


def _compare(folders: list[Path], plot: Path | None, console: Console) -> None:
    from cbn_deploy.cli.run_table import print_comparison

    kind = None if plot is None else picture_format(plot)
    rows = print_comparison(console, folders)
    if plot is not None and kind is not None:
        from cbn_deploy.training.finished_runs_plot import draw_comparison

        check_writable(plot.parent)
        atomic_write_bytes(plot, draw_comparison(rows, kind))


def _chosen_recipe(name: str | None, settings: list[str]) -> Recipe:
    from cbn_deploy.training import RECIPES, apply_settings, get_recipe

    if name is None:
        raise RecipeError(f"Say which recipe to train: {', '.join(RECIPES)}, or another that --list shows.")
    return apply_settings(get_recipe(name), settings)


def _refuse_folder_of_digits(recipe: Recipe, data: Path | None) -> None:
    """Who names a folder means its images, which this source never looks at."""
    if data is not None and recipe.data.source == "digits-lt":
        raise RecipeError(
            f"{recipe.name} trains on the digits that come with scikit-learn and reads no folder; leave out --data, or "
            f"train on {data} with image-folder."
        )


@dataclass(frozen=True)
class _Execution:
    """The options that change a run's speed and not what is trained."""

    workers: int
    threads: int | None
    device: str
    channels_last: bool
    compile: bool
    cuda_graphs: bool
    device_views: bool

    def words(self) -> list[str]:
        """As they are typed, but for those that have their defaults."""
        words = ["--workers", str(self.workers)] if self.workers else []
        words += [] if self.threads is None else ["--threads", str(self.threads)]
        words += [] if self.device == "auto" else ["--device", self.device]
        switches = {
            "--channels-last": self.channels_last,
            "--compile": self.compile,
            "--cuda-graphs": self.cuda_graphs,
            "--device-views": self.device_views,
        }
        return words + [switch for switch, on in switches.items() if on]


@dataclass(frozen=True)
class _Run:
    """What the command line asks for."""

    recipe: Recipe
    data: Path | None
    out: Path
    settings: list[str]
    resume: bool
    execution: _Execution

    def resume_command(self) -> str:
        words = ["cbn-train", self.recipe.name]
        words += [] if self.data is None else ["--data", str(self.data)]
        words += ["--out", str(self.out)]
        for setting in self.settings:
            words += ["--set", setting]
        return shlex.join([*words, *self.execution.words(), "--resume"])


def _train_on_ranks(run: _Run, console: Console) -> None:
    from cbn_deploy.training.ranks import joined_ranks

    try:
        with joined_ranks(run.execution.device) as ranks:
            # Of several processes the first one speaks, unless another fails.
            console.quiet = not ranks.is_first
            _train(run, ranks, console)
    except RankError:
        raise typer.Exit(2) from None


def _train(run: _Run, ranks: Ranks, console: Console) -> None:
    import torch

    from cbn_deploy.cli.training_progress import ConsoleProgress
    from cbn_deploy.training import train as train_recipe
    from cbn_deploy.training.execution import recording_obstacles

    execution = run.execution
    if execution.threads is not None:
        torch.set_num_threads(execution.threads)
    on_gpu = execution.device != "cpu" and torch.cuda.is_available()
    if on_gpu and not execution.cuda_graphs and not recording_obstacles(run.recipe, ranks, compiled=execution.compile):
        console.print("[dim]On a GPU small networks train faster with --cuda-graphs; see cbn-train --help.[/]")
    progress = ConsoleProgress(console)
    try:
        with progress:
            result = train_recipe(
                run.recipe,
                run.data,
                run.out,
                resume=run.resume,
                progress=progress,
                workers=execution.workers,
                device=execution.device,
                channels_last=execution.channels_last,
                compile=execution.compile,
                cuda_graphs=execution.cuda_graphs,
                device_views=execution.device_views,
            )
    except KeyboardInterrupt:
        if console.quiet:
            raise
        Console(stderr=True, soft_wrap=True).print(
            _interruption(progress.completed_epochs, progress.epochs, run.resume_command()),
            markup=False,
            highlight=False,
        )
        raise typer.Exit(130) from None
    _print_result(result, console)


def _interruption(completed: int | None, epochs: int, command: str) -> str:
    if not completed:
        return "Interrupted before the first epoch was complete; nothing was trained."
    return f"Interrupted; {completed} of {epochs} epochs are saved. Go on with: {command}"


def _print_result(result: TrainingResult, console: Console) -> None:
    scores = result.evaluation
    groups = ", ".join(
        f"{name} {value:.1%}"
        for name, value in (("many", scores.many), ("medium", scores.medium), ("few", scores.few))
        if value is not None
    )
    if len(set(scores.per_class_images)) > 1:  # else it is top-1
        groups = f"mean recall of the classes {scores.balanced_accuracy:.1%}: {groups}"
    console.print(f"[bold]top-1 {scores.top1:.1%}[/] on the test set ({groups}; calibration error {scores.ece:.1%})")
    if result.comparison is not None:
        console.print("\n".join(_beside_the_paper(result.comparison)), soft_wrap=True, highlight=False, markup=False)
    console.print(f"model:  {escape(str(result.checkpoint))}\nreport: {escape(str(result.report))}", soft_wrap=True)


def _beside_the_paper(paper: Comparison) -> list[str]:
    from cbn_deploy.training.published import per_cent_as_printed

    figures = [f"{per_cent_as_printed(row.top1)} % ({row.source}, {row.method})" for row in paper.published]
    if not figures:
        figures = [f"no figure printed ({'; '.join(paper.shown_in)})" if paper.shown_in else "not in it, our control"]
    others = [row for row in paper.others if row.experiment is None]
    lines = [f"paper:  {', '.join(figures)}"]
    if others:
        named = (f"{row.method} {per_cent_as_printed(row.top1)}" for row in sorted(others, key=lambda row: -row.top1))
        lines.append(f"others: {', '.join(named)} ({others[0].source})")
    if paper.differences:
        lines.insert(0, f"NOT the published setting ({paper.experiment}): {'; '.join(paper.differences)}")
    return lines


def _check_data(recipe: Recipe, data: Path | None, console: Console) -> None:
    from cbn_deploy.data import check_data

    with image_progress(Console(stderr=True)) as bar:
        task = bar.add_task("Listing", total=None)
        report = check_data(
            recipe.data,
            data,
            lambda done, total: bar.update(task, description="Decoding", completed=done, total=total),
        )
    report.render(console)
    if report.problems:
        raise DataError(f"{len(report.problems)} problem(s) found in {report.name}; see above what to do.")


if __name__ == "__main__":
    main()
