"""A TensorRT engine and the JSON beside it that says what it is: ``model.engine`` and ``model.engine.json``.

The engine itself stays what TensorRT wrote, so that ``trtexec`` and any C++ program can load it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from cbn_deploy.errors import ModelFileError
from cbn_deploy.runtime.description import ModelDescription, check_text

__all__ = [
    "ENGINE_FORMAT_VERSION",
    "EngineDescription",
    "EngineFile",
    "EngineRuntime",
    "Implementation",
    "TensorSpec",
    "description_path",
    "read_engine_file",
]

ENGINE_FORMAT_VERSION = 1

EngineRuntime = Literal["tensorrt", "tensorrt-rtx"]
Implementation = Literal["plugin", "function body", "none"]


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of the engine: ``dtype`` such as "float32", ``shape`` with ``None`` where it is dynamic."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True, kw_only=True)
class EngineDescription:
    """What the JSON beside an engine says.

    Attributes:
        model: what the ONNX file said about itself.
        runtime: "tensorrt", or "tensorrt-rtx" (TensorRT for RTX).
        version: of the package that built the engine; engines run on the same version.
        implementation: what computes the mixture layers: our "plugin", the op's standard-ops "function body", or
            "none" in a network without mixture layers.
        compute_capabilities: of the GPUs that it runs on, such as ("8.6", "8.9").
        batch_sizes: smallest, optimal and largest batch of its optimisation profile.
        inputs: in the engine's order.
        outputs: likewise.
        engine_sha256: of the engine file, so that a description of another engine is noticed.
        onnx_sha256: of the ONNX file that it was built from.
    """

    model: ModelDescription
    runtime: EngineRuntime
    version: str
    implementation: Implementation
    compute_capabilities: tuple[str, ...]
    batch_sizes: tuple[int, int, int]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    engine_sha256: str
    onnx_sha256: str

    def to_dict(self) -> dict[str, Any]:
        """A dict of plain JSON types (inverse of :meth:`from_dict`)."""
        return {
            "engine_format_version": ENGINE_FORMAT_VERSION,
            "runtime": self.runtime,
            "version": self.version,
            "implementation": self.implementation,
            "compute_capabilities": list(self.compute_capabilities),
            "batch_sizes": list(self.batch_sizes),
            "inputs": [_spec_to_dict(spec) for spec in self.inputs],
            "outputs": [_spec_to_dict(spec) for spec in self.outputs],
            "engine_sha256": self.engine_sha256,
            "onnx_sha256": self.onnx_sha256,
            "model": self.model.to_dict(),
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> EngineDescription:
        """Rebuild from :meth:`to_dict`'s output.

        Raises:
            ModelFileError: a field is missing or malformed, or the format version is newer than this package.
        """
        try:
            version = int(plain["engine_format_version"])
            if version > ENGINE_FORMAT_VERSION:
                raise ModelFileError(
                    f"The engine's description has format version {version}, this cbn-deploy reads up to "
                    f"{ENGINE_FORMAT_VERSION}; upgrade cbn-deploy."
                )
            check_text(plain)
            smallest, optimal, largest = (int(v) for v in plain["batch_sizes"])
            return cls(
                model=ModelDescription.from_dict(plain["model"]),
                runtime=_one_of(plain["runtime"], get_args(EngineRuntime)),
                version=str(plain["version"]),
                implementation=_one_of(plain["implementation"], get_args(Implementation)),
                compute_capabilities=tuple(str(v) for v in plain["compute_capabilities"]),
                batch_sizes=(smallest, optimal, largest),
                inputs=tuple(_spec_from_dict(spec) for spec in plain["inputs"]),
                outputs=tuple(_spec_from_dict(spec) for spec in plain["outputs"]),
                engine_sha256=str(plain["engine_sha256"]),
                onnx_sha256=str(plain["onnx_sha256"]),
            )
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise ModelFileError(
                f"The engine's description is incomplete or damaged ({error}); build the engine again."
            ) from error


@dataclass(frozen=True, kw_only=True)
class EngineFile:
    """One read of an engine and its description: ``path``, ``content`` and ``description``."""

    path: Path
    content: bytes
    description: EngineDescription


def description_path(engine: Path) -> Path:
    """``model.engine`` -> ``model.engine.json``."""
    return engine.with_name(f"{engine.name}.json")


def read_engine_file(path: Path) -> EngineFile:
    """Read an engine and the description beside it.

    Raises:
        ModelFileError: one of the two is missing, unreadable or damaged, or they do not belong together.
    """
    path = Path(path)
    content = _read(path)
    beside = description_path(path)
    try:
        plain = json.loads(_read(beside))
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{beside} is not JSON ({error}); build the engine again.") from error
    if not isinstance(plain, dict):
        raise ModelFileError(f"{beside} is not an engine's description; build the engine again.")
    try:
        description = EngineDescription.from_dict(plain)
    except ModelFileError as error:
        raise ModelFileError(f"{beside}: {error}") from error
    if hashlib.sha256(content).hexdigest() != description.engine_sha256:
        raise ModelFileError(
            f"{path} is not the engine that {beside.name} describes: truncated, or of another build; build it again."
        )
    return EngineFile(path=path, content=content, description=description)


def _read(path: Path) -> bytes:
    if not path.exists():
        raise ModelFileError(f"{path} does not exist; build an engine with cbn-export --target tensorrt.")
    if not path.is_file():  # a folder, or a pipe whose reader would wait forever
        raise ModelFileError(f"{path} is not a regular file; give the path of a model.engine made by cbn-export.")
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror or error}.") from error


def _spec_to_dict(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape)}


def _spec_from_dict(plain: Mapping[str, Any]) -> TensorSpec:
    shape = tuple(None if size is None else int(size) for size in plain["shape"])
    return TensorSpec(name=str(plain["name"]), dtype=str(plain["dtype"]), shape=shape)


def _one_of(value: Any, choices: tuple[Any, ...]) -> Any:
    if value not in choices:
        raise ValueError(f"{value!r} is none of {', '.join(choices)}")
    return value
