"""The result of an export as rich tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from export.parity_report import ParityReport
    from export.pipeline import ExportResult
    from export.precision import PrecisionReport
    from export.prune_components import PruningReport
    from export.tensorrt import EngineResult
    from export.triton_repository import RepositoryResult

__all__ = ["accuracy_table", "engine_table", "parity_table", "precision_ops_table", "repository_table", "summary_table"]


def summary_table(result: ExportResult) -> Table:
    """What was written: file, size, the op's forms, the checkpoint it came from."""
    table = Table(title=f"Exported {result.path.name}", show_header=False)
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    description = result.description
    table.add_row("file", f"{result.path}, {result.size / 1e6:.2f} MB, {result.nodes} nodes")
    table.add_row(
        "model", f"{description.architecture}, M = {description.components}, {len(description.class_names)} classes"
    )
    for op_type, count in sorted(result.forms.items()):
        table.add_row(op_type, f"{count} nodes" + (", inlined" if result.inlined else ""))
    for what, layers in _kept_components(result.pruning):
        table.add_row(what, layers)
    if description.precision != "fp32":
        table.add_row("precision", description.precision)
    table.add_row("checkpoint", f"sha256 {description.source_sha256}")
    return table


def repository_table(result: RepositoryResult) -> Table:
    """What was written for Triton, and where it must find the library."""
    table = Table(title=f"Model repository for Triton: {result.path.name}", show_header=False)
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    table.add_row("folder", str(result.path))
    table.add_row("files", ", ".join(result.files))
    table.add_row("op library", "none" if result.library is None else f"Triton must see it as {result.library}")
    return table


def _kept_components(pruning: PruningReport | None) -> list[tuple[str, str]]:
    """("kept 1 of 4", the layers) for every number of components that pruning left, and what it changed."""
    if pruning is None:
        return []
    groups: dict[str, list[str]] = {}
    for layer in sorted(pruning.layers, key=lambda layer: layer.kept):
        groups.setdefault(f"kept {layer.kept} of {layer.components}", []).append(layer.layer)
    moved = f"logits of {pruning.real_images} real images move by at most {pruning.largest_move:.1e} of their size"
    extremes = f"limit {pruning.limit:g}; on extremes {pruning.largest_move_extremes:.1e}"
    summary = (
        f"{pruning.dropped} dead components with a prior of at most {pruning.threshold:.3g}; {pruning.claimed} more "
        f"stay, because pixels of real images claim them; {moved} ({extremes})"
    )
    return [("pruned", summary), *((kept, ", ".join(layers)) for kept, layers in groups.items())]


def parity_table(report: ParityReport) -> Table:
    """One row a group of logits and one a node of the op; "of limit" above 100 % would have failed."""
    rounding = f"{report.eager_rounding_real:.1e} on real images, {report.eager_rounding_extremes:.1e} on extremes"
    ties = f"{report.ties} ties, {report.undecided_extremes} extremes undecided"
    table = Table(
        title=f"Parity on {report.inputs} inputs ({report.real_images} real images) in {report.runtime}",
        caption=f"top-1 agreement {report.top1_agreement:.2%} ({ties}); eager float32's own rounding {rounding}",
    )
    for heading in ("what", "against", "largest error", "of limit", "worst input"):
        table.add_column(heading, justify="right" if heading in ("largest error", "of limit") else "left")
    for row in report.logits:
        what = f"logits, {row.group} ({row.inputs})"
        table.add_row(what, row.reference, f"{row.max_error:.1e}", f"{row.of_limit:.1%}", row.worst_input)
    for op in report.ops:
        table.add_row(op.layer, "float64 formula", f"{op.max_error:.1e}", f"{op.of_limit:.1%}", op.worst_input)
    return table


def accuracy_table(report: PrecisionReport) -> Table:
    """What the lower precision costs: one row for all classes, which the gate judges, and one a shot group."""
    accuracy = report.accuracy
    one_image = 100 / accuracy.images
    lowered = report.precision if report.emulation is None else f"{report.precision}, emulated,"
    table = Table(
        title=f"{lowered} against the float32 checkpoint on {accuracy.images} test images of {accuracy.test_set}",
        caption=f"allowed: {accuracy.max_drop:g} points over all classes; one test image is {one_image:.2g} points; "
        f"measured in {report.runtime}, {report.kernel_path} layers",
    )
    for heading in ("classes", "test images", "float32", report.precision, "drop in points", "same answer"):
        table.add_column(heading, justify="left" if heading == "classes" else "right")
    for row in accuracy.rows:
        table.add_row(
            row.group,
            str(row.images),
            f"{row.float32:.2%}",
            f"{row.lowered:.2%}",
            f"{row.drop:+.2f}",
            f"{row.agreement:.2%}",
        )
    return table


def precision_ops_table(report: PrecisionReport) -> Table:
    """One row a node of the op; "of limit" above 100 % would have failed."""
    table = Table(title=f"Mixture layers on {report.inputs} inputs ({report.real_images} real images)")
    for heading in ("layer", "largest error", "of limit", "worst input"):
        table.add_column(heading, justify="right" if heading in ("largest error", "of limit") else "left")
    for op in report.ops:
        table.add_row(op.layer, f"{op.max_error:.1e}", f"{op.of_limit:.1%}", op.worst_input)
    return table


def engine_table(result: EngineResult) -> Table:
    """What was built: file, package, GPUs, batches, what runs."""
    table = Table(title=f"Built {result.path.name}", show_header=False)
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    description = result.description
    smallest, optimal, largest = description.batch_sizes
    table.add_row("file", f"{result.path}, {result.size / 1e6:.2f} MB, described by {result.path.name}.json")
    table.add_row("for", f"{description.runtime} {description.version}")
    table.add_row("compute capability", ", ".join(description.compute_capabilities))
    table.add_row("batch", f"{smallest} to {largest}, tuned for {optimal}")
    table.add_row("mixture layers", description.implementation)
    return table
