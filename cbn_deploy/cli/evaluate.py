"""``cbn-eval``: how good is a model file on test images, whatever runtime runs it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from cbn_deploy.atomic import atomic_write_bytes, check_writable
from cbn_deploy.cli import run_cli
from cbn_deploy.cli.evaluation_tables import tables
from cbn_deploy.cli.image_progress import image_progress
from cbn_deploy.cli.model_options import MODEL_HELP, RUNTIME_HELP, known_runtime
from cbn_deploy.cli.picture_format import picture_format
from cbn_deploy.errors import DataError, RecipeError

if TYPE_CHECKING:
    from cbn_deploy.data import ImageSet
    from cbn_deploy.runtime import ModelDescription, Session, SessionInfo
    from cbn_deploy.training.model_evaluation import ModelEvaluation

__all__ = ["main"]

_EXAMPLES = """
Examples:

  cbn-eval runs/digits-lt/model.pt --data digits

  cbn-eval model.onnx --data photos --json scores.json

  cbn-eval model.onnx --data photos --prior-shift --plot scores.png

  cbn-eval model.onnx --data photos --write-temperature   (and cbn-serve answers with calibrated probabilities)

  cbn-eval model.onnx --data cifar --runtime openvino

  cbn-eval model.pt --data photos --recipe image-folder

A folder's test images are found by what lies there: the CIFAR files, test.csv or test.txt, test/CLASS/* or CLASS/*.
With --recipe they are split off exactly as for the model's training (repeat its --set, if it had any that chose
images), which matters where no test folder exists.
"""

_NO_TEMPERATURE = (
    "No temperature fits these images: that takes some that the model gets wrong and some that it gets right; "
    "give more of them."
)

app = typer.Typer(add_completion=False)


@app.command(epilog=_EXAMPLES)
def evaluate(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help=MODEL_HELP, show_default=False)],
    data: Annotated[str, typer.Option(metavar="DIR|digits", help="Folder of the test images, or digits.")],
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the figures, as fractions, to FILE.")
    ] = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Fit a temperature on one half of the images, judge it on the other.")
    ] = False,
    write_temperature: Annotated[
        bool,
        typer.Option("--write-temperature", help="Calibrate, and put the temperature into MODEL's description."),
    ] = False,
    prior_shift: Annotated[
        bool, typer.Option("--prior-shift", help="Also under other class priors, from long-tailed to reversed.")
    ] = False,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw reliability and recalls: a .png, .svg or .pdf.")
    ] = None,
    runtime: Annotated[str, typer.Option(help=RUNTIME_HELP)] = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Images a run.")] = 256,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.", show_default="all")] = None,
    recipe: Annotated[str | None, typer.Option(help="Split the data as this recipe does.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Settings of that recipe, such as rho=50."),
    ] = None,
) -> None:
    """Evaluate a model: accuracy and recalls with intervals, many / medium / few, calibration, use of the mixture."""
    # torch takes seconds to import; --help and usage errors should not.
    from cbn_deploy.calibrated_file import description_digest
    from cbn_deploy.runtime.factory import open_session

    chosen = known_runtime(runtime)
    picture = None if plot is None else picture_format(plot)
    for written in (json_file, plot, model if write_temperature and model.exists() else None):
        if written is not None:
            check_writable(written.parent)  # before minutes of work, not after
    digest = description_digest(model) if write_temperature else None
    with open_session(model, chosen, threads, with_posteriors=True) as session:
        description, info = session.description, session.describe()
        images = _test_set(description, data, recipe, settings or [])
        if recipe is None:
            _warn(description, images, data)
        result = _evaluate(session, images, batch_size, calibrate or write_temperature, prior_shift)
    console = Console()
    for part in tables(result, description, info):
        console.print(part, highlight=False)
    if calibrate and result.calibration is None:
        console.print(_NO_TEMPERATURE, style="yellow")
    if json_file is not None:
        content = json.dumps(_as_json(result, description, info), indent=1, ensure_ascii=False)
        atomic_write_bytes(json_file, content.encode())
    if plot is not None and picture is not None:
        from cbn_deploy.training.evaluation_plot import draw_evaluation

        title = f"{info.file}, {result.images} images"
        atomic_write_bytes(plot, draw_evaluation(result, description, title, picture))
    if write_temperature:
        _write_temperature(console, model, result, digest)


def main() -> None:
    """Entry point of ``cbn-eval``."""
    run_cli(app)


def _test_set(description: ModelDescription, data: str, recipe: str | None, settings: list[str]) -> ImageSet:
    from cbn_deploy.training import apply_settings, get_recipe
    from cbn_deploy.training.test_set import DIGITS, find_test_set, recipe_test_set, with_seed_of

    if recipe is None:
        if settings:
            raise RecipeError("--set changes a recipe; name it with --recipe.")
        return find_test_set(description, data)
    chosen = apply_settings(with_seed_of(description, get_recipe(recipe)), settings)
    if chosen.data.source == "digits-lt" and data != DIGITS:
        raise RecipeError(
            f"{chosen.name} judges on the digits that come with scikit-learn and reads no folder; give --data "
            f"{DIGITS}, or leave out --recipe for the images in {data}."
        )
    return recipe_test_set(description, chosen, data)


def _warn(description: ModelDescription, images: ImageSet, data: str) -> None:
    from cbn_deploy.training.test_set import doubt_about

    doubt = doubt_about(description, images, data)
    if doubt is not None:
        console = Console(stderr=True, soft_wrap=True)
        console.print(f"[bold yellow]Warning:[/] {escape(doubt)}", highlight=False)


def _evaluate(
    session: Session, images: ImageSet, batch_size: int, with_calibration: bool, with_prior_shift: bool
) -> ModelEvaluation:
    from cbn_deploy.data import evaluation_batches
    from cbn_deploy.training.model_evaluation import evaluate_model

    with image_progress(Console(stderr=True)) as bar:
        task = bar.add_task("Classifying", total=len(images))
        return evaluate_model(
            session,
            evaluation_batches(images, session.description.preprocessing, batch_size),
            with_calibration=with_calibration,
            with_prior_shift=with_prior_shift,
            progress=lambda done: bar.update(task, completed=done),
        )


def _write_temperature(console: Console, model: Path, result: ModelEvaluation, digest: str | None) -> None:
    """Last of all: what was measured has been printed and written by now."""
    from cbn_deploy.calibrated_file import write_temperature

    if result.calibration is None:
        raise DataError(f"{model} was left as it is. {_NO_TEMPERATURE}")
    write_temperature(model, result.calibration.temperature, digest=digest)
    console.print(f"{escape(str(model))} now carries temperature {result.calibration.temperature:.4f}.")


def _as_json(result: ModelEvaluation, description: ModelDescription, info: SessionInfo) -> dict[str, Any]:
    return {
        **result.to_dict(),
        "class_names": list(description.class_names),
        "class_counts": list(description.class_counts),
        "runtime": info.runtime,
        "runtime_version": info.version,
        "kernel_path": info.kernel_path,
    }
