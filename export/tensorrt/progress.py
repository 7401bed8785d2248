"""What TensorRT reports while it builds: progress to show, messages to explain a failure with."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any

__all__ = ["BuildProgress", "Messages", "logger", "progress_monitor"]

BuildProgress = Callable[[str, int, int], None]


class Messages:
    """The errors that TensorRT has logged since :meth:`clear`."""

    def __init__(self) -> None:
        self._errors: list[str] = []

    def add(self, message: str) -> None:
        """Keep one message."""
        self._errors.append(" ".join(message.split()))

    def clear(self) -> None:
        """Forget what earlier builds said."""
        self._errors.clear()

    @property
    def first(self) -> str:
        """The first error, which tends to be the cause of the others; a phrase if there is none."""
        return self._errors[0].rstrip(".") if self._errors else "no reason was logged"


@cache
def logger(trt: ModuleType) -> tuple[Any, Messages]:
    """The process's logger for the package ``trt``, and where its errors go.

    One for all builds: TensorRT keeps the first logger that it is given and ignores later ones.
    """
    messages = Messages()

    class Collector(trt.ILogger):  # type: ignore[misc, name-defined]  # known only at run time
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                messages.add(message)

    return Collector(), messages


def progress_monitor(trt: ModuleType, progress: BuildProgress) -> tuple[Any, list[BaseException]]:
    """A monitor that calls ``progress(phase, steps done, steps in all)``, and a list for what was raised meanwhile.

    An exception must not travel through TensorRT: it is kept, the build is called off, and the caller raises it.
    """
    raised: list[BaseException] = []

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]  # known only at run time
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            del parent
            self._steps[phase] = steps

        def phase_finish(self, phase: str) -> None:
            self._steps.pop(phase, None)

        def step_complete(self, phase: str, step: int) -> bool:
            if raised:
                return False
            try:
                progress(phase, step + 1, self._steps.get(phase, step + 1))
            except BaseException as error:  # noqa: BLE001 - raised again by the caller
                raised.append(error)
                return False
            return True

    return Monitor(), raised
