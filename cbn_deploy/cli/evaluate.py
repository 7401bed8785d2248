"""``cbn-eval``: how good is a model file on test images, whatever runtime runs it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cbn_deploy.atomic import atomic_write_bytes
from cbn_deploy.cli import run_cli
from cbn_deploy.errors import RecipeError

if TYPE_CHECKING:
    from cbn_deploy.data import ImageSet
    from cbn_deploy.runtime import ModelDescription, SessionInfo
    from cbn_deploy.training import Evaluation

__all__ = ["main"]

_EXAMPLES = """
Examples:

  cbn-eval runs/digits-lt/model.pt --data digits

  cbn-eval model.onnx --data photos --json scores.json

  cbn-eval model.onnx --data cifar --runtime openvino

  cbn-eval model.pt --data photos --recipe image-folder --set data.seed=3

A folder's test images are found by what lies there: the CIFAR files, test.csv or test.txt, test/CLASS/* or CLASS/*.
With --recipe they are split off exactly as cbn-train does it, which matters where no test folder exists.
"""

app = typer.Typer(add_completion=False)


@app.command(epilog=_EXAMPLES)
def evaluate(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model.pt or model.onnx.", show_default=False)],
    data: Annotated[str, typer.Option(metavar="DIR|digits", help="Folder of the test images, or digits.")],
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the figures, as fractions, to FILE.")
    ] = None,
    runtime: Annotated[
        str, typer.Option(help="auto (by the file's suffix), onnxruntime, openvino, torch or tensorrt.")
    ] = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Images a run.")] = 256,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads. [all]")] = None,
    recipe: Annotated[str | None, typer.Option(help="Split the data as this recipe does.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Settings of that recipe, such as data.seed=3."),
    ] = None,
) -> None:
    """Evaluate a model: top-1, many / medium / few, recall of every class, calibration error."""
    from cbn_deploy.data import evaluation_batches
    from cbn_deploy.runtime.factory import RUNTIMES, open_session
    from cbn_deploy.training import evaluate_predictions
    from cbn_deploy.training.predictions import predict_with_session

    known = {name: name for name in RUNTIMES}
    if runtime not in known:
        raise RecipeError(f"There is no runtime {runtime!r}; choose one of {', '.join(known)}.")
    with open_session(model, known[runtime], threads) as session:
        images = _test_set(session.description, data, recipe, settings or [])
        batches = evaluation_batches(images, session.description.preprocessing, batch_size)
        logits, labels = predict_with_session(session, batches)
        scores = evaluate_predictions(logits, labels, session.description.class_counts)
        if json_file is not None:
            content = _as_json(scores, session.description, session.describe(), len(images))
            atomic_write_bytes(json_file, json.dumps(content, indent=1, ensure_ascii=False).encode())
        _print(scores, session.description, session.describe(), len(images))


def main() -> None:
    """Entry point of ``cbn-eval``."""
    run_cli(app)


def _test_set(description: ModelDescription, data: str, recipe: str | None, settings: list[str]) -> ImageSet:
    from cbn_deploy.training import apply_settings, get_recipe
    from cbn_deploy.training.test_set import find_test_set, recipe_test_set

    if recipe is None:
        if settings:
            raise RecipeError("--set changes a recipe; name it with --recipe.")
        return find_test_set(description, data)
    return recipe_test_set(description, apply_settings(get_recipe(recipe), settings), data)


def _as_json(scores: Evaluation, description: ModelDescription, info: SessionInfo, images: int) -> dict[str, Any]:
    return {
        **scores.to_dict(),
        "class_names": list(description.class_names),
        "class_counts": list(description.class_counts),
        "images": images,
        "runtime": info.runtime,
        "runtime_version": info.version,
        "kernel_path": info.kernel_path,
    }


def _print(scores: Evaluation, description: ModelDescription, info: SessionInfo, images: int) -> None:
    console = Console()
    table = Table(title=f"{escape(info.file)} on {images} images, {info.runtime} {info.version} ({info.kernel_path})")
    table.add_column("class, most frequent first", overflow="fold")
    table.add_column("training images", justify="right")
    table.add_column("group")
    table.add_column("recall", justify="right")
    counts = description.class_counts
    for k in sorted(range(len(counts)), key=lambda k: (-counts[k], k)):
        table.add_row(
            escape(description.class_names[k]),
            str(counts[k]),
            description.shot_groups[k],
            _percent(scores.per_class[k]),
        )
    console.print(table)
    console.print(
        f"top-1 [bold]{_percent(scores.top1)}[/]; many {_percent(scores.many)}, medium {_percent(scores.medium)}, "
        f"few {_percent(scores.few)}; calibration error {_percent(scores.ece)}",
        highlight=False,
    )


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{fraction:.1%}"
