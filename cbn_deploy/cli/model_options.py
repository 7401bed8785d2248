"""What the command lines that run a model file share: how they name the file and its runtime."""

from __future__ import annotations

from cbn_deploy.errors import RecipeError
from cbn_deploy.runtime.factory import RUNTIMES, RuntimeName

__all__ = ["MODEL_HELP", "RUNTIME_HELP", "known_runtime"]

MODEL_HELP = "A model.onnx, model.pt or model.engine."
RUNTIME_HELP = f"{RUNTIMES[0]} (by the file's suffix), {', '.join(RUNTIMES[1:])}."


def known_runtime(name: str) -> RuntimeName:
    """``name``, if there is such a runtime.

    Raises:
        RecipeError: there is none.
    """
    for runtime in RUNTIMES:
        if name == runtime:
            return runtime
    raise RecipeError(f"There is no runtime {name!r}; choose one of {', '.join(RUNTIMES)}.")
