"""A model repository for NVIDIA Triton Inference Server: the file, its configuration, its labels, the op's library.

Triton's ONNX Runtime backend hands ``op_library_filename`` to the dynamic linker as it is, so the path must be the one
at which Triton sees the library, not one relative to the model. ``cbn-serve --model-repository`` serves the same
folder.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import onnx

from cbn_deploy.atomic import atomic_folder, check_writable
from cbn_deploy.errors import ModelFileError, OutputError
from cbn_deploy.native_library import native_library
from cbn_deploy.op_forms import OP_DOMAIN
from cbn_deploy.runtime.description import ModelDescription
from cbn_deploy.runtime.onnx_file import read_onnx_file
from cbn_deploy.runtime.signature import INPUT, LOGITS, MODEL_NAME

__all__ = ["RepositoryOptions", "RepositoryResult", "check_repository", "write_repository"]

_LABELS = "labels.txt"
# Where NVIDIA's examples mount a repository in the container.
_MODELS = PurePosixPath("/models")


@dataclass(frozen=True, kw_only=True)
class RepositoryOptions:
    """How Triton will run the model.

    Attributes:
        max_batch: images of a batch.
        seen_at: the repository's path as Triton sees it, such as the mount point in its container.
        with_library: the op runs in our library, on the CPU; otherwise in its standard-ops body, anywhere.
    """

    max_batch: int = 32
    seen_at: PurePosixPath = _MODELS
    with_library: bool = True

    def __post_init__(self) -> None:
        if self.max_batch < 1:
            raise ValueError(f"max_batch must be at least 1, got {self.max_batch}")
        if not self.seen_at.is_absolute():
            raise ValueError(f"seen_at must be an absolute path, got {self.seen_at}")


@dataclass(frozen=True, kw_only=True)
class RepositoryResult:
    """What was written.

    Attributes:
        path: the model's folder.
        files: relative to it.
        library: where Triton will look for the op's library; ``None``: it needs none.
    """

    path: Path
    files: tuple[str, ...]
    library: PurePosixPath | None


def check_repository(folder: Path, options: RepositoryOptions) -> None:
    """Refuse an impossible output before minutes of work.

    Raises:
        OutputError: the folder exists, its name is none that Triton and cbn-serve take, or there is no library.
    """
    if not MODEL_NAME.fullmatch(folder.name):
        raise OutputError(
            f"{folder.name!r} is no model name (letters, digits, '.', '_', '-', at most 64); choose another -o."
        )
    if folder.exists():
        raise OutputError(f"{folder} exists already; remove it, or choose another name for the model.")
    if options.with_library and native_library() is None:
        raise OutputError("The op's native library is not installed here; add --no-op-library to do without it.")
    check_writable(folder.parent)


def write_repository(
    write_model: Callable[[Path], object], folder: Path, options: RepositoryOptions | None = None
) -> RepositoryResult:
    """Write ``folder``, which appears whole or not at all.

    Args:
        write_model: called with the path at which to write the ``model.onnx``.
        folder: REPOSITORY/NAME.
        options: how Triton will run it.

    Raises:
        OutputError: see :func:`check_repository`, or the disk is full.
        ModelFileError: what ``write_model`` wrote is no exported model.
    """
    options = options or RepositoryOptions()
    check_repository(folder, options)
    with atomic_folder(folder) as temporary:
        model = temporary / "1" / "model.onnx"
        model.parent.mkdir()
        write_model(model)
        file = read_onnx_file(model)
        library = _add_library(temporary, folder.name, options) if OP_DOMAIN in file.domains else None
        names = (" ".join(name.split()) for name in file.description.class_names)
        (temporary / _LABELS).write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
        config = _config(folder.name, file.description, _outputs(model), library, options.max_batch)
        (temporary / "config.pbtxt").write_text(config, encoding="utf-8")
        files = tuple(sorted(str(path.relative_to(temporary)) for path in temporary.rglob("*") if path.is_file()))
    return RepositoryResult(path=folder, files=files, library=library)


def _add_library(temporary: Path, name: str, options: RepositoryOptions) -> PurePosixPath | None:
    library = native_library() if options.with_library else None
    if library is None:
        return None
    shutil.copyfile(library.path, temporary / library.path.name)
    return options.seen_at / name / library.path.name


def _outputs(model: Path) -> list[tuple[str, list[int]]]:
    """Names and dimensions after the batch; -1 where dynamic."""
    graph = onnx.load(model, load_external_data=False).graph
    outputs = []
    for output in graph.output:
        sizes = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in output.type.tensor_type.shape.dim]
        outputs.append((output.name, sizes[1:]))
    if LOGITS not in dict(outputs):
        raise ModelFileError(f"{model.name} has no output '{LOGITS}'; make it with cbn-export.")
    return outputs


def _config(
    name: str,
    description: ModelDescription,
    outputs: list[tuple[str, list[int]]],
    library: PurePosixPath | None,
    max_batch: int,
) -> str:
    """``config.pbtxt``: the message inference.ModelConfig in protobuf's text format."""
    size = description.preprocessing
    dims = [3, size.height, size.width]
    # With the library on a GPU each tensor would travel to the CPU and back at every layer.
    kind = "KIND_CPU" if library is not None or description.precision == "int8" else "KIND_AUTO"
    lines = [
        f"name: {_quoted(name)}",
        'backend: "onnxruntime"',
        f"max_batch_size: {max_batch}",
        "input {",
        *(f"  {line}" for line in _tensor(INPUT, dims)),
        "}",
    ]
    for output, sizes in outputs:
        labels = [f"label_filename: {_quoted(_LABELS)}"] if output == LOGITS else []
        lines += ["output {", *(f"  {line}" for line in _tensor(output, sizes) + labels), "}"]
    lines += [f"instance_group {{ count: 1 kind: {kind} }}", "dynamic_batching { }"]
    if library is not None:
        lines += [f"model_operations {{ op_library_filename: {_quoted(str(library))} }}"]
    sample = f"data_type: TYPE_FP32 dims: {dims} zero_data: true"
    lines += [f'model_warmup {{ name: "zeros" batch_size: 1 inputs {{ key: "{INPUT}" value {{ {sample} }} }} }}']
    return "\n".join(lines) + "\n"


def _tensor(name: str, dims: list[int]) -> list[str]:
    return [f"name: {_quoted(name)}", "data_type: TYPE_FP32", f"dims: {dims}"]


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
