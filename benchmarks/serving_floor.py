"""What one process can do without HTTP: decode, preprocess and run images in batches."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cbn_deploy.runtime.factory import open_session
from cbn_deploy.runtime.preprocessing import decode_image, preprocess

__all__ = ["Floor"]

_BATCH = 32


class Floor:
    """The better of two orders: decoding a batch while the one before runs, and one after the other.

    Args:
        model: an exported model.
        files: images, taken in turn.
        threads: that decode, and that share an inference.
    """

    def __init__(self, model: Path, files: Sequence[bytes], threads: int) -> None:
        self._files, self._threads = files, threads
        self._sessions = [open_session(model, threads=threads, spin=spin) for spin in (False, True)]
        self._preprocessing = self._sessions[0].description.preprocessing
        self.cpu_ms: list[float] = []  # processor time an image, overlapped, of every measurement

    def images_per_second(self, seconds: float) -> float:
        """Measured for half of ``seconds`` in each order."""
        with ThreadPoolExecutor(self._threads) as pool:
            return max(self._overlapped(pool, seconds / 2), self._in_turn(pool, seconds / 2))

    def _overlapped(self, pool: ThreadPoolExecutor, seconds: float) -> float:
        batches = self._batches()
        following = [pool.submit(self._decode, content) for content in next(batches)]
        started, images, cpu = time.perf_counter(), 0, time.process_time()
        while time.perf_counter() < started + seconds:
            present, following = following, [pool.submit(self._decode, content) for content in next(batches)]
            self._sessions[0].run(np.stack([job.result() for job in present]))
            images += _BATCH
        ended = time.perf_counter()
        self.cpu_ms.append((time.process_time() - cpu) / images * 1000)
        for job in following:
            job.cancel()
        return images / (ended - started)

    def _in_turn(self, pool: ThreadPoolExecutor, seconds: float) -> float:
        batches = self._batches()
        started, images = time.perf_counter(), 0
        while time.perf_counter() < started + seconds:
            self._sessions[1].run(np.stack(list(pool.map(self._decode, next(batches)))))
            images += _BATCH
        return images / (time.perf_counter() - started)

    def _batches(self) -> Iterator[list[bytes]]:
        files = itertools.cycle(self._files)
        while True:
            yield list(itertools.islice(files, _BATCH))

    def _decode(self, content: bytes) -> NDArray[np.float32]:
        return preprocess(decode_image(content), self._preprocessing)
