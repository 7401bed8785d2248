"""Run a checkpoint, ``model.pt``, with torch on the CPU: what exported models are compared with."""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from cbn_deploy.checkpoint import load_checkpoint, load_model
from cbn_deploy.errors import InputError
from cbn_deploy.native_library import native_library
from cbn_deploy.norm import FrozenCompoundBatchNorm2d, freeze
from cbn_deploy.runtime.session import Prediction, Session, SessionInfo

__all__ = ["TorchSession"]


class TorchSession(Session):
    """A checkpoint in eager torch, frozen: evaluation mode, fixed statistics.

    Args:
        path: a ``model.pt``.
        threads: for ``torch.set_num_threads``, which holds for the whole process; ``None`` leaves it as it is.
        with_posteriors: fill ``Prediction.posteriors``, as files do that were exported with ``--with-posterior``; every
            mixture layer is then computed twice.

    Raises:
        CheckpointError: the file is missing, damaged or untrusted.
    """

    def __init__(self, path: Path, threads: int | None = None, *, with_posteriors: bool = False) -> None:
        checkpoint = load_checkpoint(Path(path))
        if threads is not None:
            torch.set_num_threads(threads)
        self.description = checkpoint.description
        self._file = Path(path).name
        self._model: torch.nn.Module | None = freeze(load_model(checkpoint)).eval()
        self._posteriors = _PosteriorsOfThread()
        if with_posteriors:
            for name, layer in self._model.named_modules():
                if isinstance(layer, FrozenCompoundBatchNorm2d):
                    layer.register_forward_pre_hook(partial(self._posteriors.keep, name))

    def _run(self, images: NDArray[np.float32]) -> Prediction:
        model = self._model  # one read: close() may come between
        if model is None:
            raise InputError("The session is closed; open the model again.")
        writable = np.require(images, requirements="W")  # torch warns of read-only memory
        found = self._posteriors.found = {}
        try:
            with torch.inference_mode():  # thread-local, so it belongs here and not around the constructor
                logits = model(torch.from_numpy(writable))
        finally:
            self._posteriors.found = {}  # what was found is the caller's alone
        return Prediction(logits=logits.numpy(), posteriors=found)

    def describe(self) -> SessionInfo:
        """Eager torch, with the thread count that torch reports now."""
        library = native_library() if self.description.components else None  # a batch-norm model has no use for it
        return SessionInfo(
            runtime="torch",
            version=torch.__version__,
            kernel_path="eager",
            instruction_set=None if library is None else library.instruction_set,
            threads=torch.get_num_threads(),
            device="cpu",
            file=self._file,
        )

    def close(self) -> None:
        """Release the model; runs that are under way finish."""
        self._model = None


class _PosteriorsOfThread(threading.local):
    """What the run that is under way on this thread has found; several may run the same layers at once."""

    found: dict[str, NDArray[np.float32]]

    def keep(self, name: str, layer: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        assert isinstance(layer, FrozenCompoundBatchNorm2d)  # noqa: S101 - hooked on such layers only
        self.found[name] = layer.posterior(inputs[0]).numpy()
