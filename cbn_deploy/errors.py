"""Every error that this project raises on purpose.

CbnError
 ├── RecipeError               a recipe name or a ``--set key=value`` that does not exist or does not fit
 ├── DataError                 a data set that is missing, empty, inconsistent or unreadable
 ├── CheckpointError           a ``model.pt`` that is truncated, untrusted or of another format
 ├── ModelFileError            a ``model.onnx`` that is unreadable or does not describe itself
 ├── RuntimeUnavailableError   a runtime whose package is not installed
 ├── SettingsError             a flag, environment variable or key file of the server that cannot work
 ├── OutputError               a folder or file that cannot be written, a full disk
 ├── TrainingError             a run that cannot go on (NaN loss)
 │    └── RankError                another process of the same run has failed
 ├── ParityError               an export whose answers differ from the checkpoint's
 ├── EngineError               an engine that TensorRT cannot build
 ├── InputError                an array given to a Session that has the wrong shape, dtype or size
 └── ImageError                an image that cannot be classified
      ├── ImageTooLargeError       more bytes, pixels or frames than allowed
      ├── UnsupportedImageError    not one of the allowed formats
      └── CorruptImageError        an allowed format, but damaged

The message is one sentence that says what is wrong and what to do; command lines print it and exit with code 2.
Errors of the caller's own code (a wrong argument to a function) are plain ``ValueError`` / ``TypeError``.
"""

from __future__ import annotations

__all__ = [
    "CbnError",
    "CheckpointError",
    "CorruptImageError",
    "DataError",
    "EngineError",
    "ImageError",
    "ImageTooLargeError",
    "InputError",
    "ModelFileError",
    "OutputError",
    "ParityError",
    "RankError",
    "RecipeError",
    "RuntimeUnavailableError",
    "SettingsError",
    "TrainingError",
    "UnsupportedImageError",
]


class CbnError(Exception):
    """Base of every deliberate error; ``str(error)`` is one sentence for a person."""


class RecipeError(CbnError):
    """A recipe name or setting that does not exist or has an impossible value."""


class DataError(CbnError):
    """A data set that is missing, empty, inconsistent or unreadable."""


class CheckpointError(CbnError):
    """A checkpoint that is truncated, untrusted or of another format."""


class ModelFileError(CbnError):
    """An exported model that is unreadable or does not describe itself."""


class RuntimeUnavailableError(CbnError):
    """A runtime whose package is not installed; the message says what to install."""


class SettingsError(CbnError):
    """A setting of the server that cannot work."""


class OutputError(CbnError):
    """A folder or file that cannot be written."""


class TrainingError(CbnError):
    """A training run that cannot go on."""


class RankError(TrainingError):
    """Another process of the same training run has failed, which says itself why."""


class ParityError(CbnError):
    """An exported model whose answers differ from the checkpoint's."""


class EngineError(CbnError):
    """An engine that TensorRT cannot build."""


class InputError(CbnError):
    """An input array of the wrong shape, dtype or size."""


class ImageError(CbnError):
    """An image that cannot be classified."""


class ImageTooLargeError(ImageError):
    """An image with more bytes, pixels or frames than allowed."""


class UnsupportedImageError(ImageError):
    """Bytes that are not an image of an allowed format."""


class CorruptImageError(ImageError):
    """An image of an allowed format that is damaged."""
