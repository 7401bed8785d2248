"""The one interface behind which every runtime lives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from cbn_deploy.errors import InputError
from cbn_deploy.runtime.description import ModelDescription

__all__ = ["Prediction", "Session", "SessionInfo"]

KernelPath = Literal["fused", "portable", "eager"]


@dataclass(frozen=True, kw_only=True)
class SessionInfo:
    """Which code answers, for logs, metrics and benchmark tables.

    Attributes:
        runtime: "onnxruntime", "openvino", "torch", "tensorrt" or "tensorrt-rtx".
        version: version of that package.
        kernel_path: "fused" (our native op or plugin), "portable" (the op's standard-ops body), "eager" (torch).
        instruction_set: what the native kernels in use are compiled for, such as "avx512"; ``None``: none are in use.
        block: channels of a block, where the native kernels keep onnxruntime's blocked layout; ``None``: they do not.
        threads: intra-op threads.
        device: "cpu", or the device's name.
        file: the model file's name (no folder).
    """

    runtime: str
    version: str
    kernel_path: KernelPath
    instruction_set: str | None = None
    block: int | None = None
    threads: int
    device: str
    file: str


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What one run returns: ``logits`` float32 (B, K); if the file has them, layer name -> posterior (B, M, H, W)."""

    logits: NDArray[np.float32]
    posteriors: dict[str, NDArray[np.float32]] = field(default_factory=dict)


class Session(ABC):
    """A loaded model. ``run`` may be called from several threads at once.

    Attributes:
        description: what the model file says about itself.
    """

    description: ModelDescription

    def run(self, images: NDArray[np.float32]) -> Prediction:
        """Classify ``images``: float32 (B, 3, H, W), preprocessed as :attr:`description` says, B >= 1.

        Raises:
            InputError: wrong rank, shape or dtype, or the session is closed.
        """
        self.check(images)
        return self._run(images)

    def check(self, images: NDArray[np.float32]) -> None:
        """Whether :meth:`run` takes ``images``.

        Raises:
            InputError: wrong rank, shape or dtype.
        """
        expected = (3, self.description.preprocessing.height, self.description.preprocessing.width)
        if images.dtype != np.float32:
            raise InputError(f"images must be float32, got {images.dtype}.")
        if images.ndim != 4 or images.shape[0] < 1 or images.shape[1:] != expected:
            raise InputError(f"images must have shape (B, {', '.join(map(str, expected))}), got {images.shape}.")

    @abstractmethod
    def _run(self, images: NDArray[np.float32]) -> Prediction: ...

    @abstractmethod
    def describe(self) -> SessionInfo:
        """Runtime, version, kernel path and threads actually in use."""

    @abstractmethod
    def close(self) -> None:
        """Release the model; further runs raise :class:`InputError`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
