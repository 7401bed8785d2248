"""``metrics.jsonl``: one JSON line for every completed epoch, on disk before the next epoch starts."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path

from cbn_deploy.atomic import atomic_write_bytes
from cbn_deploy.errors import OutputError

__all__ = ["EpochMetrics", "append_metrics", "keep_epochs", "read_metrics"]


@dataclass(frozen=True, kw_only=True)
class EpochMetrics:
    """What one epoch brought.

    Attributes:
        epoch: 1-based.
        loss: mean total loss over the epoch's images.
        classification_loss: its part on the compound path (on the only path of a batch-norm model).
        split_loss: its part on the split path, unweighted; ``None`` without a split path.
        consistency_loss: Eq. 19, unweighted; ``None`` where it is not used.
        train_accuracy: share of strong views classified right while training, compound path.
        learning_rate: of the epoch's last step.
        images_per_second: training images (not views) a second.
        seconds: wall-clock seconds of the epoch, evaluation included.
        top1, many, medium, few, ece: on the test set after the epoch; ``None`` where not evaluated or group absent.
    """

    epoch: int
    loss: float
    classification_loss: float
    split_loss: float | None
    consistency_loss: float | None
    train_accuracy: float
    learning_rate: float
    images_per_second: float
    seconds: float
    top1: float | None = None
    many: float | None = None
    medium: float | None = None
    few: float | None = None
    ece: float | None = None


def append_metrics(path: Path, metrics: EpochMetrics) -> None:
    """Append one line and wait until it is on disk.

    Raises:
        OutputError: the file cannot be written or the disk is full.
    """
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dataclasses.asdict(metrics)) + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OutputError(f"Cannot write {path}: {error.strerror or error}; free space and add --resume.") from error


def read_metrics(path: Path) -> list[EpochMetrics]:
    """Every whole line of the file, in order; lines that a kill cut short or a disk damaged are left out.

    No file, no metrics.
    """
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return [metrics for line in lines if (metrics := _parsed(line)) is not None]


def _parsed(line: str) -> EpochMetrics | None:
    try:
        metrics = EpochMetrics(**json.loads(line))
    except (ValueError, TypeError):  # no JSON; other keys
        return None
    return metrics if isinstance(metrics.epoch, int) else None


def keep_epochs(path: Path, epochs: int) -> list[EpochMetrics]:
    """Drop every line after epoch ``epochs`` (its epoch will be run again) and return the lines kept."""
    kept = [metrics for metrics in read_metrics(path) if metrics.epoch <= epochs]
    lines = "".join(json.dumps(dataclasses.asdict(metrics)) + "\n" for metrics in kept)
    atomic_write_bytes(path, lines.encode())
    return kept
