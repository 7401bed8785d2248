"""The output folder of a run: what lies where, and whether a run may begin or go on there."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from cbn_deploy.atomic import check_writable
from cbn_deploy.errors import CheckpointError, DataError, OutputError, RecipeError
from cbn_deploy.training.recipe import Recipe, changes
from cbn_deploy.training.state import RunState, load_state

__all__ = ["RunFolder", "check_same_run"]

_REPORT_BYTES = 8 * 2**20


@dataclass(frozen=True)
class RunFolder:
    """Paths below ``path``."""

    path: Path

    @property
    def model(self) -> Path:
        """The finished checkpoint; it exists only when the run is complete."""
        return self.path / "model.pt"

    @property
    def state(self) -> Path:
        """The state after the last completed epoch, for resuming."""
        return self.path / "last.pt"

    @property
    def metrics(self) -> Path:
        """One JSON line an epoch."""
        return self.path / "metrics.jsonl"

    @property
    def report(self) -> Path:
        """The page for people."""
        return self.path / "report.html"

    @property
    def report_json(self) -> Path:
        """The same for programs."""
        return self.path / "report.json"

    @property
    def plots(self) -> Path:
        """The folder of the page's pictures."""
        return self.path / "plots"

    @classmethod
    def below(cls, path: Path) -> set[RunFolder]:
        """Every run in ``path`` or below, finished or not."""
        names = cls(path).report_json.name, cls(path).state.name
        return {cls(found.parent) for name in names for found in path.rglob(name)}

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Inside the block no other process trains into the folder.

        It is made if need be, and goes again if it was and stays empty.

        Raises:
            OutputError: another process does, the path is a file, or the folder cannot be made.
        """
        try:
            if self.path.exists() and not self.path.is_dir():
                raise OutputError(f"{self.path} is a file; give a folder with --out.")
            made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
            self.path.mkdir(parents=True, exist_ok=True)
            folder = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise OutputError(f"Cannot write to {self.path} ({error.strerror}); choose another --out.") from error
        try:
            _lock(folder, self.path)
            yield
        finally:
            os.close(folder)
            with contextlib.suppress(OSError):  # not empty, as it should be
                for empty in made:
                    empty.rmdir()

    def check_vacant(self) -> None:
        """Refuse to overwrite an earlier run.

        Raises:
            OutputError: there is one with at least one epoch.
            CheckpointError: there is a last.pt that cannot be read, so nobody knows how many it has.
        """
        # The state is read last, it is large; one of epoch 0 is what a run leaves that ends in its first epoch.
        if (
            self.model.exists()
            or (self.metrics.exists() and self.metrics.stat().st_size > 0)
            or (self.state.exists() and load_state(self.state).epoch > 0)
        ):
            raise OutputError(
                f"{self.path} already holds a run; add --resume to go on with it, or choose another folder with --out."
            )

    def load_state(self) -> RunState:
        """The state to resume from.

        Raises:
            OutputError: there is no run here.
            CheckpointError: its state is damaged.
        """
        if not self.state.is_file():
            raise OutputError(f"There is no run to resume in {self.path}; check --out, or leave out --resume to start.")
        return load_state(self.state)

    def check_space(self, model: nn.Module) -> None:
        """Raise :class:`OutputError` before training if the folder cannot take what the run will write."""
        tensors = [*model.parameters(), *model.buffers()]
        model_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        # last.pt holds weights and momentum and is written beside its predecessor; model.pt holds the weights again.
        check_writable(self.path, needed_bytes=5 * model_bytes + _REPORT_BYTES)


def _lock(folder: int, path: Path) -> None:
    try:
        # The kernel lets go of it when the process ends, however it ends.
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise OutputError(
            f"Another process is training into {path}; wait for it to end, or choose another folder with --out."
        ) from error
    except OSError:
        return  # some network file systems lock no folders; a training there is worth more than the lock


def check_same_run(
    state: RunState, recipe: Recipe, class_names: tuple[str, ...], class_counts: tuple[int, ...]
) -> None:
    """Refuse to resume something else than what was started.

    Raises:
        RecipeError: the recipe differs; the message names the settings.
        DataError: the data differ.
        CheckpointError: the state has more epochs than the recipe.
    """
    differences = changes(recipe, Recipe.from_dict(state.recipe))
    if differences:
        changed = ", ".join(f"{key}={theirs} (now {ours})" for key, (ours, theirs) in differences.items())
        raise RecipeError(
            f"The run to resume was started with {changed}; repeat its recipe and --set, or choose another --out."
        )
    if tuple(state.class_names) != class_names or tuple(state.class_counts) != class_counts:
        raise DataError(
            "The data are not those that the run was started with (other classes or counts); "
            "restore them, or start a new run in another folder."
        )
    if state.epoch > recipe.schedule.epochs:
        raise CheckpointError(
            f"The state to resume from is damaged (epoch {state.epoch} of {recipe.schedule.epochs}); "
            "start again in another folder."
        )
