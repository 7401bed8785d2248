"""``model.onnx`` in, ``model.engine`` and ``model.engine.json`` out, or an error and nothing written."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from cbn_deploy.atomic import atomic_path, check_writable
from cbn_deploy.errors import OutputError
from cbn_deploy.runtime.engine_file import EngineDescription, description_path
from cbn_deploy.runtime.onnx_file import read_onnx_file
from export.tensorrt.full import build_full, check_full
from export.tensorrt.options import EngineOptions
from export.tensorrt.progress import BuildProgress
from export.tensorrt.rtx import build_rtx, check_rtx

__all__ = ["EngineResult", "build_engine", "check_engine"]


@dataclass(frozen=True, kw_only=True)
class EngineResult:
    """What was written: the engine's ``path``, its ``size`` in bytes, and its ``description``."""

    path: Path
    size: int
    description: EngineDescription


def check_engine(source: Path, output: Path, options: EngineOptions) -> None:
    """Raise now what :func:`build_engine` would raise about this machine, ``options`` or ``output`` later.

    Args:
        source: the file that the engine comes from, ``.onnx`` or the checkpoint behind it.
        output: the engine to write.
        options: see :class:`EngineOptions`.

    Raises:
        RuntimeUnavailableError, EngineError, OutputError: as :func:`build_engine`.
    """
    output = Path(output)
    if output.is_dir():
        raise OutputError(f"{output} is a folder; give the name of the .engine file to write.")
    written = (output, description_path(output), _timing_path(output))
    if Path(source).resolve() in [path.resolve() for path in written]:
        raise OutputError(f"{output} would replace {source}, which it is made from; choose another output name.")
    (check_full if options.runtime == "tensorrt" else check_rtx)(options)
    check_writable(output.parent)


def build_engine(
    onnx: Path, output: Path, options: EngineOptions, progress: BuildProgress | None = None
) -> EngineResult:
    """Build an engine from a file that :func:`export.export_checkpoint` wrote.

    Args:
        onnx: the self-describing ``model.onnx``.
        output: the engine to write; its description goes to ``OUTPUT.json``, and what TensorRT measured while it built
            to ``OUTPUT.timing`` (not for TensorRT-RTX, which measures nothing). Files that exist are replaced.
        options: see :class:`EngineOptions`.
        progress: called with (phase, steps done, steps in all).

    Raises:
        ModelFileError: ``onnx`` cannot be read or does not describe itself.
        RuntimeUnavailableError: TensorRT, or a GPU that it needs, is absent.
        EngineError: TensorRT cannot build it, or not for the compute capabilities asked for.
        OutputError: ``output`` cannot be written, or it or a file beside it is ``onnx`` itself.
    """
    check_engine(onnx, output, options)
    file = read_onnx_file(Path(onnx))
    if options.runtime == "tensorrt":
        build = build_full(file, options, _timing_path(Path(output)), progress)
    else:
        build = build_rtx(file, options, progress)
    description = EngineDescription(
        model=file.description,
        runtime=options.runtime,
        version=build.version,
        implementation=build.implementation,
        compute_capabilities=build.compute_capabilities,
        batch_sizes=options.batch_sizes,
        inputs=build.engine.inputs,
        outputs=build.engine.outputs,
        engine_sha256=hashlib.sha256(build.engine.content).hexdigest(),
        onnx_sha256=hashlib.sha256(file.content).hexdigest(),
    )
    _write(Path(output), build.engine.content, description)
    return EngineResult(path=Path(output), size=len(build.engine.content), description=description)


def _timing_path(output: Path) -> Path:
    return output.with_name(f"{output.name}.timing")


def _write(output: Path, engine: bytes, description: EngineDescription) -> None:
    """Both files are whole before either gets its name, the description first: no engine is seen with an older one."""
    text = json.dumps(description.to_dict(), indent=2, ensure_ascii=False) + "\n"
    with atomic_path(output) as engine_file, atomic_path(description_path(output)) as json_file:
        engine_file.write_bytes(engine)
        json_file.write_text(text, encoding="utf-8")
