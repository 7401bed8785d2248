"""Find and load ``libcbn``, the native library of the layer. Imports no torch: servers use it through onnxruntime.

The library is optional. It is absent where the package was installed without a C++ compiler, and unused where the
environment variable ``CBN_DISABLE_NATIVE`` is set to anything but "" or "0"; the layer is then computed portably.
``CBN_INSTRUCTION_SET`` ("avx512", "avx2" or "baseline") overrides the choice among the library's kernels.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from typing_extensions import Self

import cbn_deploy
from cbn_deploy.native_interface import Quantum, Tensors, declare

__all__ = [
    "BFLOAT16",
    "FLOAT16",
    "FLOAT32",
    "MAX_COMPONENTS",
    "UINT8",
    "NativeLayer",
    "NativeLibrary",
    "Quantum",
    "native_library",
]

# ONNX's numbers of the types that the kernels store.
FLOAT32, UINT8, FLOAT16, BFLOAT16 = 1, 2, 10, 16
# More components than this have no kernel.
MAX_COMPONENTS = 256

_FILE_NAMES = {"darwin": "libcbn.dylib", "win32": "cbn.dll"}
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class NativeLibrary:
    """The loaded library.

    Attributes:
        path: of the shared library; onnxruntime registers the op's kernels from it.
        version: of the package it was built with.
        functions: its C interface.
    """

    path: Path
    version: str
    functions: ctypes.CDLL

    @property
    def instruction_set(self) -> str | None:
        """What new layers use; ``None``: ``CBN_INSTRUCTION_SET`` names something that cannot run here."""
        name: bytes | None = self.functions.cbn_instruction_set()
        return None if name is None else name.decode()


def native_library() -> NativeLibrary | None:
    """The library, or ``None`` where it is absent or turned off. Loaded once; logs its absence once."""
    if os.environ.get("CBN_DISABLE_NATIVE", "") not in ("", "0"):
        return None
    return _load()


class NativeLayer:
    """One layer's constants inside the library; ``with`` it, or :meth:`close` it, to free them.

    Args:
        library: from :func:`native_library`.
        components: M, 1 to :data:`MAX_COMPONENTS`.
        channels: D.
        tables: addresses of tau (M,), mean, var, scale, bias (M, D): contiguous float32, read once.
        epsilon: added to the variances.
        density_scale: factor of the log-density.
        instruction_set: name of the kernels to use; ``None``: the library's choice.

    Raises:
        ValueError: a wrong size, or an instruction set that cannot run here.
    """

    def __init__(
        self,
        library: NativeLibrary,
        components: int,
        channels: int,
        tables: tuple[int, int, int, int, int],
        epsilon: float,
        density_scale: float,
        instruction_set: str | None = None,
    ) -> None:
        self._functions = library.functions
        self._layer = ctypes.c_void_p()
        name = None if instruction_set is None else instruction_set.encode()
        _check(
            self._functions.cbn_layer_create(
                components, channels, *tables, epsilon, density_scale, name, ctypes.byref(self._layer)
            )
        )

    def forward(
        self,
        data_type: int,
        images: int,
        pixels: int,
        x: int,
        y: int,
        *,
        residual: int | None = None,
        posterior: int | None = None,
        relu: bool = False,
        begin: int = 0,
        end: int | None = None,
        block: int = 0,
        quanta: tuple[Quantum, Quantum, Quantum] = (Quantum(), Quantum(), Quantum()),
    ) -> None:
        """Compute the pixels ``begin <= n < end`` of ``images * pixels`` in the calling thread, without the GIL.

        Args:
            data_type: :data:`FLOAT32`, :data:`FLOAT16`, :data:`BFLOAT16`, or :data:`UINT8`, for which ``x``,
                ``residual`` and ``y`` are (B, P, D), D a multiple of the instruction set's 4, 8 or 16 lanes, and there
                is no posterior.
            images: B.
            pixels: P.
            x: address of the contiguous input (B, D, P).
            y: address of the output, likewise.
            residual: address of what is added before the activation, likewise.
            posterior: where the posterior (B, M, P), float32, goes.
            relu: apply ``max(0, .)`` at the end.
            begin: first pixel, counted over all images.
            end: one after the last; ``None``: all.
            block: 0, or 8 or 16: ``x``, ``residual`` and ``y`` are float32 (B, ceil(D / block), P, block), the channels
                beyond D zero.
            quanta: what the numbers of ``x``, ``residual`` and ``y`` stand for; read for :data:`UINT8` only.

        Raises:
            ValueError: a wrong type, range, block or quantum, or a closed layer.
        """
        tensors = Tensors(data_type, relu, images, pixels, x, residual, y, posterior, block, *quanta)
        stop = images * pixels if end is None else end
        _check(self._functions.cbn_layer_forward(self._layer, ctypes.byref(tensors), begin, stop))

    def close(self) -> None:
        """Free the constants."""
        self._functions.cbn_layer_destroy(self._layer)
        self._layer = ctypes.c_void_p()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _check(message: bytes | None) -> None:
    if message is not None:
        raise ValueError(message.decode())


@functools.cache
def _load() -> NativeLibrary | None:
    for path in _candidates():
        if path.is_file():
            try:
                return _open(path)
            except (OSError, AttributeError) as error:
                _log.warning("%s cannot be loaded (%s); the layer is computed portably.", path, error)
                return None
    _log.warning("libcbn was not built (no C++ compiler at installation); the layer is computed portably.")
    return None


def _candidates() -> Iterator[Path]:
    """The package's folders: an editable installation has the sources in one and what was built in another."""
    name = _FILE_NAMES.get(sys.platform, "libcbn.so")
    for folder in cbn_deploy.__path__:
        yield Path(folder) / "kernels" / "native" / name


def _open(path: Path) -> NativeLibrary:
    functions = ctypes.CDLL(str(path))
    declare(functions)
    return NativeLibrary(path=path, version=functions.cbn_version().decode(), functions=functions)
