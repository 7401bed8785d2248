"""``cbn-export``: a checkpoint becomes one self-describing ``model.onnx``."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cbn_deploy.cli import run_cli
from export.render import parity_table, summary_table

__all__ = ["app", "main"]

app = typer.Typer(add_completion=False, rich_markup_mode="rich")


class Precision(str, enum.Enum):
    """Arithmetic of the exported file."""

    FP32 = "fp32"


class Target(str, enum.Enum):
    """Kind of file to write."""

    ONNX = "onnx"


@app.command(
    epilog="Examples:\n\n"
    "  cbn-export runs/digits-lt/model.pt\n\n"
    "  cbn-export model.pt -o deploy/model.onnx --with-posterior\n\n"
    "  cbn-export model.pt -o flat.onnx --inline   (for OpenVINO and other readers without ONNX functions)"
)
def export_model(
    checkpoint: Annotated[Path, typer.Argument(metavar="MODEL.pt", help="Checkpoint made by cbn-train.")],
    output: Annotated[
        Optional[Path],  # noqa: UP045 - typer evaluates annotations on Python 3.10 too
        typer.Option("--output", "-o", help="File to write; by default MODEL.onnx beside the checkpoint."),
    ] = None,
    inline: Annotated[
        bool, typer.Option("--inline", help="Write a flat graph of standard ops, without the cbn op.")
    ] = False,
    with_posterior: Annotated[
        bool,
        typer.Option("--with-posterior", help="Add an output per layer: which Gaussian claims which pixel."),
    ] = False,
    precision: Annotated[Precision, typer.Option(help="Arithmetic of the exported file.")] = Precision.FP32,
    target: Annotated[Target, typer.Option(help="Kind of file to write.")] = Target.ONNX,
    data: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Folder of images for the parity check; by default those stored in the checkpoint."),
    ] = None,
    allow_rounding: Annotated[
        bool,
        typer.Option(
            "--allow-rounding",
            help="Export a network that amplifies float32's own rounding, if every node keeps its limit.",
        ),
    ] = False,
) -> None:
    """Export a checkpoint to ONNX.

    The file appears only after every layer and the logits have been compared with the checkpoint, in float32 and in
    float64, on real images and on extremes. It runs on any ONNX runtime and carries everything that a server needs.
    """
    # torch and onnx take seconds to import; --help and usage errors should not.
    from export.pipeline import ExportOptions, export_checkpoint

    del precision, target  # one choice each so far
    output = output or checkpoint.with_suffix(".onnx")
    options = ExportOptions(inline=inline, with_posterior=with_posterior, data=data, allow_rounding=allow_rounding)
    with _progress() as bar:
        task = bar.add_task("Exporting and checking parity", total=options.inputs)
        result = export_checkpoint(
            checkpoint, output, options, progress=lambda done, total: bar.update(task, completed=done, total=total)
        )
    console = Console()
    console.print(summary_table(result))
    console.print(parity_table(result.parity))
    if not result.parity.logits_judged:
        console.print(
            "The network amplifies float32's own rounding, so the logits were not judged, only every node.",
            style="yellow",
        )
    if result.parity.real_images == 0:
        console.print(
            "The checkpoint carries no sample images, so parity was checked on extremes only; add --data FOLDER.",
            style="yellow",
        )


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )


def main() -> None:
    """Console script."""
    run_cli(app)
