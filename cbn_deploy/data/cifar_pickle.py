"""Read CIFAR's official pickles without trusting them: only plain containers, text and arrays of plain numbers."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from cbn_deploy.errors import DataError

__all__ = ["read_batch"]

# The function that pickled arrays name; its module moved between numpy versions, the function did not change.
_RECONSTRUCT = np.zeros(0).__reduce__()[0]
_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")


def _dtype(code: bytes | str, *_: object) -> np.dtype[Any]:
    """The dtype of a number code such as "u1"; the align and copy flags of old pickles are of no use to us."""
    text = code.decode("ascii") if isinstance(code, bytes) else code
    dtype = np.dtype(text)
    if dtype.kind not in "biuf":
        raise pickle.UnpicklingError(f"dtype {text!r} is not allowed")
    return dtype


class _RestrictedUnpickler(pickle.Unpickler):
    """Knows array reconstruction and nothing else, so that no code of the file's author can run."""

    def find_class(self, module: str, name: str) -> Any:
        if (name == "_reconstruct" and module in _MODULES) or (module, name) == ("numpy", "ndarray"):
            return np.ndarray if name == "ndarray" else _RECONSTRUCT
        if (module, name) == ("numpy", "dtype"):
            return _dtype
        if (module, name) == ("_codecs", "encode"):
            # How Python 3 writes bytes for Python 2 readers: re-packed files have it, the official ones do not.
            return _encode
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed")


def _encode(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", b"latin1"):
        raise pickle.UnpicklingError(f"encoding {encoding!r} is not allowed")
    return text.encode("latin1")


def read_batch(path: Path) -> dict[str, Any]:
    """The dictionary in one official file, with text keys and text instead of bytes in its lists.

    Raises:
        DataError: the file cannot be read, is truncated, or holds anything but the official content.
    """
    try:
        batch = _RestrictedUnpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load()
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror or error}.") from error
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise DataError(f"{path} is not an official CIFAR file, or truncated ({error}); download it again.") from error
    if not isinstance(batch, dict):
        raise DataError(f"{path} does not hold a dictionary; download the official CIFAR file again.")
    return {_text(key): [_text(v) for v in value] if isinstance(value, list) else value for key, value in batch.items()}


def _text(value: Any) -> Any:
    return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else value
