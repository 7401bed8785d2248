"""``cbn-export``: a checkpoint becomes one self-describing ``model.onnx``, or an engine or repository made from it."""

from __future__ import annotations

import dataclasses
import enum
import tempfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, List, Optional  # noqa: UP035 - as below

import typer
from rich.console import Console

from cbn_deploy.cli import run_cli
from cbn_deploy.cli.image_progress import image_progress
from cbn_deploy.runtime.onnx_file import read_onnx_file
from export.render import (
    accuracy_table,
    engine_table,
    parity_table,
    precision_ops_table,
    repository_table,
    summary_table,
)

if TYPE_CHECKING:
    from export.parity_report import ParityReport
    from export.pipeline import ExportOptions, ExportResult
    from export.precision import PrecisionReport
    from export.tensorrt import EngineOptions

__all__ = ["app", "main"]

app = typer.Typer(add_completion=False, rich_markup_mode="rich")


class Precision(str, enum.Enum):
    """Arithmetic of the exported file."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"


class Target(str, enum.Enum):
    """Kind of file to write."""

    ONNX = "onnx"
    TENSORRT = "tensorrt"
    TENSORRT_RTX = "tensorrt-rtx"
    TRITON = "triton"


@app.command(
    epilog="Examples:\n\n"
    "  cbn-export runs/digits-lt/model.pt\n\n"
    "  cbn-export model.pt -o deploy/model.onnx --with-posterior\n\n"
    "  cbn-export model.pt -o flat.onnx --inline   (for OpenVINO and other readers without ONNX functions)\n\n"
    "  cbn-export model.pt -o int8.onnx --precision int8 --data photos --calibration photos/train\n\n"
    "  cbn-export model.pt -o int8.onnx --precision int8 --data digits\n\n"
    "  cbn-export model.pt --precision bf16 --data photos --target tensorrt   (on the GPU that will run it)\n\n"
    "  cbn-export model.pt --prune-components   (a layer with one Gaussian left becomes a plain convolution)\n\n"
    "  cbn-export model.pt --target tensorrt-rtx --compute-capability 8.9   (needs no GPU)\n\n"
    "  cbn-export model.onnx --target tensorrt --batch-sizes 1,8,32   (on the GPU that will run it)\n\n"
    "  cbn-export model.pt --target triton -o model_repository/birds   (for NVIDIA Triton Inference Server)"
)
def export_model(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL.pt",
            help="Checkpoint made by cbn-train; for another target than onnx also an exported MODEL.onnx.",
        ),
    ],
    output: Annotated[
        Optional[Path],  # noqa: UP045 - typer evaluates annotations on Python 3.10 too
        typer.Option(
            "--output",
            "-o",
            help="File to write; by default MODEL.onnx or MODEL.engine beside the checkpoint. For Triton the "
            "model's folder in its repository; by default model_repository/MODEL.",
        ),
    ] = None,
    inline: Annotated[
        bool, typer.Option("--inline", help="Write a flat graph of standard ops, without the cbn op.")
    ] = False,
    with_posterior: Annotated[
        bool,
        typer.Option("--with-posterior", help="Add an output per layer: which Gaussian claims which pixel."),
    ] = False,
    precision: Annotated[
        Precision,
        typer.Option(
            help="Arithmetic: int8 convolutions; fp16 or bf16 weights and activations, the mixtures' densities in "
            "fp32. All but fp32 need --data. bf16 is for GPUs and judged by an emulation in fp32."
        ),
    ] = Precision.FP32,
    calibration: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            metavar="DIR",
            help="Folder of images (subfolders too) that set int8's ranges; by default training images of --data.",
        ),
    ] = None,
    max_drop: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(
            metavar="POINTS",
            min=0.0,
            max=100.0,
            help="Balanced top-1 that a file of lower precision may lose.",
            show_default="0.5",
        ),
    ] = None,
    target: Annotated[Target, typer.Option(help="Kind of file to write.")] = Target.ONNX,
    batch_sizes: Annotated[
        str,
        typer.Option(
            metavar="MIN,OPT,MAX",
            help="Batches that an engine accepts; it is tuned for the middle one. Triton needs the last alone.",
        ),
    ] = "1,8,32",
    compute_capability: Annotated[
        Optional[List[str]],  # noqa: UP006, UP045
        typer.Option(
            metavar="X.Y",
            help="GPU to build a TensorRT-RTX engine for; repeat it for several. By default 8.6, 8.9 and 12.0.",
        ),
    ] = None,
    repository_at: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="PATH", help="With --target triton: where Triton sees the model repository.", show_default="/models"
        ),
    ] = None,
    no_op_library: Annotated[
        bool,
        typer.Option("--no-op-library", help="With --target triton: let standard ops compute the cbn op."),
    ] = False,
    prune_components: Annotated[
        bool,
        typer.Option(
            "--prune-components",
            help="Leave out the dead Gaussians: those of tiny prior that no pixel of a real image claims.",
        ),
    ] = False,
    prune_threshold: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(
            metavar="TAU",
            min=0.0,
            max=0.999,
            help="With --prune-components: how small a prior is tiny.",
            show_default="0.000101, training's floor",
        ),
    ] = None,
    data: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            metavar="DIR|digits",
            help="Images for the parity check (default: those in the checkpoint); for a lower precision the labelled "
            "test images, found as cbn-eval does.",
        ),
    ] = None,
    allow_rounding: Annotated[
        bool,
        typer.Option(
            "--allow-rounding",
            help="Export a network that amplifies float32's own rounding, if every node keeps its limit and the logits "
            "differ by no more than a few times what float32 costs in PyTorch.",
        ),
    ] = False,
) -> None:
    """Export a checkpoint to ONNX, or through ONNX to a TensorRT engine or a model repository for Triton.

    The file appears only after every layer and the logits have been compared with the checkpoint, in float32 and in
    float64, on real images and on extremes; a file of lower precision after its accuracy has been compared instead of
    the logits. It runs on any ONNX runtime, bf16 on those of GPUs, and carries everything that a server needs.
    """
    _check_precision(precision, target, calibration, max_drop)
    if prune_threshold is not None and not prune_components:
        raise typer.BadParameter("--prune-threshold goes with --prune-components.")
    if target is not Target.TRITON and (repository_at is not None or no_op_library):
        raise typer.BadParameter("--repository-at and --no-op-library go with --target triton.")
    if target not in (Target.TENSORRT, Target.TENSORRT_RTX) and compute_capability:
        raise typer.BadParameter("--compute-capability goes with --target tensorrt-rtx.")
    # torch and onnx take seconds to import; --help and usage errors should not.
    from export.pipeline import ExportOptions

    options = ExportOptions(
        inline=inline,
        with_posterior=with_posterior,
        data=data,
        precision=precision.value,
        calibration=calibration,
        allow_rounding=allow_rounding,
    )
    if max_drop is not None:
        options = dataclasses.replace(options, max_drop=max_drop)
    if prune_components:
        from export.prune_components import DEFAULT_THRESHOLD

        threshold = DEFAULT_THRESHOLD if prune_threshold is None else prune_threshold
        options = dataclasses.replace(options, prune_threshold=threshold)
    if target is Target.ONNX:
        result = _export(checkpoint, output or checkpoint.with_suffix(".onnx"), options)
        Console().print(summary_table(result))
        _print_report(result.parity)
        return
    if checkpoint.suffix == ".onnx" and options != ExportOptions():
        raise typer.BadParameter("A MODEL.onnx is built as it is; give the MODEL.pt to export it in another way.")
    if target is Target.TRITON:
        folder = output or checkpoint.parent / "model_repository" / checkpoint.stem
        _export_repository(
            checkpoint, folder, options, _batch_sizes(batch_sizes)[2], repository_at or "/models", not no_op_library
        )
        return
    from export.tensorrt import EngineOptions

    engine_options = EngineOptions(
        runtime=target.value,
        batch_sizes=_batch_sizes(batch_sizes),
        compute_capabilities=tuple(dict.fromkeys(compute_capability or ())),
    )
    _export_engine(checkpoint, output or checkpoint.with_suffix(".engine"), options, engine_options)


def _export(checkpoint: Path, output: Path, options: ExportOptions) -> ExportResult:
    from export.pipeline import export_checkpoint

    with image_progress(Console(stderr=True)) as bar:
        task = bar.add_task("Exporting and checking parity", total=None)
        return export_checkpoint(
            checkpoint, output, options, progress=lambda done, total: bar.update(task, completed=done, total=total)
        )


def _check_precision(precision: Precision, target: Target, calibration: Path | None, max_drop: float | None) -> None:
    if precision is not Precision.INT8 and calibration is not None:
        raise typer.BadParameter("--calibration goes with --precision int8.")
    if precision is Precision.FP32 and max_drop is not None:
        raise typer.BadParameter("--max-drop goes with a lower --precision; fp32 must keep every answer.")
    if precision is Precision.INT8 and target in (Target.TENSORRT, Target.TENSORRT_RTX):
        raise typer.BadParameter("int8 files are made for CPUs; build an engine with --precision fp16, bf16 or fp32.")
    if precision is Precision.BF16 and target is Target.TRITON:
        raise typer.BadParameter("bf16 is for engines, and Triton gets an ONNX file; use --precision fp16 or fp32.")


def _print_report(report: ParityReport | PrecisionReport) -> None:
    from export.precision import PrecisionReport

    if isinstance(report, PrecisionReport):
        _print_accuracy(report)
    else:
        _print_parity(report)


def _print_accuracy(report: PrecisionReport) -> None:
    console = Console()
    if report.calibration is not None:
        left_out = report.calibration.in_test_set
        console.print(
            f"Calibrated on {report.calibration.images} {report.calibration.source}"
            + (f"; {left_out} more were left out because the test set has them." if left_out else ".")
        )
    console.print(precision_ops_table(report))
    console.print(accuracy_table(report))
    if report.test_set_doubt is not None:
        console.print(report.test_set_doubt, style="yellow", markup=False)
    if report.emulation is not None:
        console.print(
            f"Judged by an emulation, not by running the file: the same graph in {report.emulation.arithmetic} "
            f"({report.emulation.rounded} of them). {report.runtime} has no bfloat16 convolutions for CPUs.",
            style="yellow",
        )


def _print_parity(parity: ParityReport) -> None:
    console = Console()
    console.print(parity_table(parity))
    if parity.rounding_allowed:
        console.print(
            "The network amplifies float32's own rounding, so the logits of real images were allowed "
            f"{parity.limits['rounding']:g} times what float32 costs them in PyTorch "
            f"({parity.eager_rounding_real:.1e} of their size).",
            style="yellow",
        )
    if parity.real_images == 0:
        console.print(
            "The checkpoint carries no sample images, so parity was checked on extremes only; add --data FOLDER.",
            style="yellow",
        )


def _export_engine(checkpoint: Path, output: Path, options: ExportOptions, engine_options: EngineOptions) -> None:
    """Through a parity-gated ONNX file, or from one that exists already."""
    from export.tensorrt import build_engine, check_engine

    check_engine(checkpoint, output, engine_options)
    with tempfile.TemporaryDirectory() as folder:
        onnx = checkpoint
        if checkpoint.suffix != ".onnx":
            onnx = Path(folder) / checkpoint.with_suffix(".onnx").name
            _print_report(_export(checkpoint, onnx, options).parity)
        with image_progress(Console(stderr=True)) as bar:
            task = bar.add_task("Building the engine", total=None)
            result = build_engine(
                onnx,
                output,
                engine_options,
                progress=lambda phase, done, total: bar.update(task, description=phase, completed=done, total=total),
            )
    Console().print(engine_table(result))


def _export_repository(
    checkpoint: Path, folder: Path, options: ExportOptions, max_batch: int, seen_at: str, with_library: bool
) -> None:
    from export.triton_repository import RepositoryOptions, check_repository, write_repository

    if not PurePosixPath(seen_at).is_absolute():
        raise typer.BadParameter(f"--repository-at must be an absolute path, as Triton sees it, not {seen_at}.")
    repository = RepositoryOptions(max_batch=max_batch, seen_at=PurePosixPath(seen_at), with_library=with_library)
    check_repository(folder, repository)

    def write_model(path: Path) -> None:
        if checkpoint.suffix == ".onnx":
            path.write_bytes(read_onnx_file(checkpoint).content)
        else:
            _print_report(_export(checkpoint, path, options).parity)

    result = write_repository(write_model, folder, repository)
    Console().print(repository_table(result))


def _batch_sizes(text: str) -> tuple[int, int, int]:
    try:
        sizes = [int(part) for part in text.split(",")]
        smallest, optimal, largest = sizes if len(sizes) == 3 else sizes * 3
    except ValueError:
        smallest, optimal, largest = 0, 0, 0
    if not 1 <= smallest <= optimal <= largest:
        raise typer.BadParameter(f"--batch-sizes must be like 1,8,32 (smallest, optimal, largest) or 8, not {text}.")
    return smallest, optimal, largest


def main() -> None:
    """Console script."""
    run_cli(app)
