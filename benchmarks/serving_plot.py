"""The picture of benchmarks/serving.py: throughput and latency against concurrency."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from cbn_deploy.atomic import atomic_path

__all__ = ["save_plot"]


def save_plot(result: dict[str, Any], workloads: Sequence[str], path: Path) -> None:
    """A row a workload: throughput with the floor, and p99."""
    mpl.use("Agg")
    figure = Figure(figsize=(11, 3.8 * len(workloads)), layout="constrained")
    panels = figure.subplots(len(workloads), 2, squeeze=False)
    for (throughput, latency), workload in zip(panels, workloads, strict=True):
        measured = result[workload]
        throughput.axhline(measured["floor"]["median"], color="grey", linestyle="--", label="without HTTP")
        for name in dict.fromkeys(row["name"] for row in measured["curves"]):
            rows = [row for row in measured["curves"] if row["name"] == name]
            concurrency = [row["concurrency"] for row in rows]
            width = 2.5 if name.startswith("cbn-serve") else 1.2
            throughput.plot(concurrency, [row["images_per_second"] for row in rows], "o-", lw=width, ms=4, label=name)
            latency.plot(concurrency, [row["p99_ms"] for row in rows], "o-", lw=width, ms=4, label=name)
        throughput.set_ylabel("images a second")
        throughput.set_ylim(bottom=0)
        latency.set_ylabel("99 % of the answers within, ms")
        latency.set_yscale("log")
        for panel in (throughput, latency):
            panel.set_title(f"{workload}, {result['model']}", fontsize=10)
            panel.set_xlabel("requests under way")
            panel.set_xscale("log", base=2)
            panel.set_xticks(concurrency, [str(value) for value in concurrency])
    figure.legend(*throughput.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=9)
    figure.suptitle(f"{result['machine']['cpu']}, {result['threads']} threads, client on the same CPUs", fontsize=10)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
