"""``cbn-bench``: a checkpoint and its batch-norm twin, measured in every runtime. Parity first."""

from export.bench.cli import main

__all__ = ["main"]
