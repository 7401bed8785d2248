"""``cbn-predict``: classify a whole folder of images into a table, without a server."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from cbn_deploy.cli import run_cli
from cbn_deploy.cli.image_progress import image_progress
from cbn_deploy.cli.model_options import MODEL_HELP, RUNTIME_HELP, known_runtime

if TYPE_CHECKING:
    from cbn_deploy.prediction import PredictionRun

__all__ = ["main"]

_EXAMPLES = """
Examples:

  cbn-predict model.onnx photos --out predictions.parquet

  cbn-predict model.onnx list.txt --out table.csv   (list.txt: the path of an image a line)

  cbn-predict model.onnx photos --out predictions.jsonl --prior uniform

Stopped by Ctrl-C, a kill or a full disk? The same command goes on where it was.
"""

app = typer.Typer(add_completion=False)


@app.command(epilog=_EXAMPLES)
def predict(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help=MODEL_HELP)],
    source: Annotated[
        Path, typer.Argument(metavar="DIR|LIST", help="Folder of images (subfolders too), or a text file of paths.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Table to write: .parquet, .csv or .jsonl.")],
    top_k: Annotated[int, typer.Option(min=1, help="Labels in the ranking of an image.")] = 5,
    prior: Annotated[
        str | None,
        typer.Option(help="Class frequencies to expect: train, uniform or a JSON object of label -> probability."),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images a run of the model.")] = 32,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; all unless given.")] = None,
    runtime: Annotated[str, typer.Option(help=RUNTIME_HELP)] = "auto",
    max_bytes: Annotated[int, typer.Option(min=1, help="Bytes of an image file; a larger one is an error row.")] = 2
    ** 24,
    max_pixels: Annotated[int, typer.Option(min=1, help="Pixels of an image, likewise.")] = 40_000_000,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace FILE if it is there.")] = False,
) -> None:
    """Classify images into a table: label, probability, shot group, energy and the ranking of each, or its error."""
    from cbn_deploy.prediction import PredictionOptions, predict_images
    from cbn_deploy.runtime.preprocessing import ImageLimits

    chosen = known_runtime(runtime)
    options = PredictionOptions(
        top_k=top_k, prior=prior, limits=ImageLimits(max_bytes=max_bytes, max_pixels=max_pixels)
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: what is done is kept
    console = Console(stderr=True)
    with image_progress(console) as bar:
        task = bar.add_task("Opening", total=None)
        try:
            result = predict_images(
                model,
                source,
                out,
                options,
                batch_size=batch_size,
                threads=threads,
                runtime=chosen,
                overwrite=overwrite,
                progress=lambda done, total: bar.update(task, description="Classifying", completed=done, total=total),
            )
        except KeyboardInterrupt:
            console.print("Stopped; what is done is kept, and the same command goes on with it.")
            raise
    _print(Console(soft_wrap=True), result)


def main() -> None:
    """Entry point of ``cbn-predict``."""
    run_cli(app)


def _print(console: Console, result: PredictionRun) -> None:
    new = result.images - result.resumed
    rate = f", {new / result.seconds:,.0f} a second" if new else ""
    before = f" ({result.resumed:,} of them were done before)" if result.resumed else ""
    console.print(f"{escape(str(result.path))}: {result.images:,} images{before}{rate}.", highlight=False)
    if result.errors:
        console.print(
            f"{result.errors:,} could not be classified, such as {escape(result.first_error or '')}",
            style="yellow",
            highlight=False,
        )
