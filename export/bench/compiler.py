"""torch.compile without its noise: whether it works here, and one compilation for every batch size."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cbn_deploy.errors import RuntimeUnavailableError

__all__ = ["compile_network", "quiet_compilation", "why_no_compiler"]

# Dynamo keeps one entry for each batch size of each network, all under the one forward(); its default limit is 8.
_RECOMPILE_LIMIT = 256


def why_no_compiler() -> str | None:
    """One sentence if the C++ compiler that torch.compile would call is missing, else ``None``."""
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        return f"torch.compile needs a C++ compiler, and {compiler} was not found; install it or set CXX."
    return None


def compile_network(module: nn.Module) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """Compile ``module`` for inference: constants folded, a fixed shape for each batch size, no fall-back to eager.

    A batch size is compiled when it is first seen, for torch's present number of threads.

    Raises:
        RuntimeUnavailableError: not even a trivial function compiles.
    """
    _try_trivial()
    # Freezing folds weights and batch norms into constants, as onnxruntime and OpenVINO do when they load a file.
    compiled = torch.compile(module, dynamic=False, fullgraph=True, options={"freezing": True})
    seen: set[int] = set()

    def call(images: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            logits: NDArray[np.float32] = compiled(torch.from_numpy(images)).numpy()
        return logits

    def run(images: NDArray[np.float32]) -> NDArray[np.float32]:
        if len(images) in seen:
            return call(images)
        with quiet_compilation():
            logits = call(images)
        seen.add(len(images))
        return logits

    return run


def _try_trivial() -> None:
    try:
        with quiet_compilation():
            torch.compile(lambda x: x + 1.0, options={"freezing": True})(torch.zeros(2))
    except Exception as error:  # a broken tool chain surfaces as any of a dozen types
        reason = str(error).strip().partition("\n")[0][:200]
        raise RuntimeUnavailableError(
            f"torch.compile does not work here ({reason}); check the C++ compiler and Python's headers."
        ) from error


@contextmanager
def quiet_compilation() -> Iterator[None]:
    """Lift the limit on recompilations, and keep torch's warnings about its own internals from the user."""
    import torch._dynamo.config

    logger = logging.getLogger("torch._inductor")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch._dynamo.config.patch(recompile_limit=_RECOMPILE_LIMIT):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
