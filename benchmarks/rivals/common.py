"""What every rival is given: the same decoding, preprocessing and inference as cbn-serve; only the serving differs.

The environment says what to serve: ``BENCH_MODEL``, ``BENCH_THREADS``, ``BENCH_PORT``, and ``BENCH_PACKAGE``, the
folder of the package that holds the native library.
"""

from __future__ import annotations

import io
import os
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import cbn_deploy

cbn_deploy.__path__.append(os.environ["BENCH_PACKAGE"])

from cbn_deploy.runtime.factory import open_session  # noqa: E402 - the native library is looked for in the path above
from cbn_deploy.runtime.preprocessing import preprocess  # noqa: E402

PORT = int(os.environ["BENCH_PORT"])
MAX_BATCH = 32
# What a batch waits for company, in seconds; without it these servers run images one by one.
BATCH_TIMEOUT = 0.002


class Classifier:
    """The model, and the two halves of an answer."""

    def __init__(self) -> None:
        self._session = open_session(os.environ["BENCH_MODEL"], threads=int(os.environ["BENCH_THREADS"]), spin=False)
        self.description = self._session.description

    def decode(self, content: bytes) -> NDArray[np.float32]:
        """An image file -> (3, H, W)."""
        return preprocess(Image.open(io.BytesIO(content)).convert("RGB"), self.description.preprocessing)

    def logits(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """(B, 3, H, W) -> (B, K)."""
        return self._session.run(images).logits

    def ranking(self, logits: NDArray[np.float32]) -> dict[str, Any]:
        """(K,) -> the five best labels with their probabilities."""
        exponentials = np.exp(logits - logits.max())
        probabilities = exponentials / exponentials.sum()
        best = np.argsort(-probabilities)[:5]
        names = self.description.class_names
        return {"predictions": [{"label": names[index], "probability": float(probabilities[index])} for index in best]}
