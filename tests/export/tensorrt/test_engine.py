"""Engines built for real with TensorRT-RTX, on a machine without a GPU, from a file that the exporter wrote."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from cbn_deploy.checkpoint import load_checkpoint, load_model
from cbn_deploy.errors import EngineError, ModelFileError, OutputError, RuntimeUnavailableError
from cbn_deploy.norm import freeze
from cbn_deploy.runtime.engine_file import TensorSpec, description_path, read_engine_file
from cbn_deploy.runtime.factory import open_session
from cbn_deploy.runtime.onnx_file import read_onnx_file
from export import ExportResult
from export.cli import main
from export.passes import DescribePass, ToSixteenBitsPass
from export.tensorrt import EngineOptions, EngineResult, build_engine
from export.tensorrt import engine as engine_module
from export.to_onnx import build_graph
from tests.engine_files import describe_engine
from tests.reference.tolerances import tolerance

NEEDS_RTX = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx_bindings") is None, reason="TensorRT-RTX is not installed"
)


def options(*capabilities: str, **changes: object) -> EngineOptions:
    return EngineOptions(runtime="tensorrt-rtx", compute_capabilities=capabilities, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def engine(exported: ExportResult, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., EngineResult]:
    """Builds once for each set of compute capabilities."""
    folder, built = tmp_path_factory.mktemp("engines"), {}

    def build(*capabilities: str) -> EngineResult:
        if capabilities not in built:
            output = folder / f"{'-'.join(capabilities)}.engine"
            built[capabilities] = build_engine(exported.path, output, options(*capabilities))
        return built[capabilities]

    return build


def header_word(result: EngineResult) -> int:
    """Where TensorRT-RTX 1.7 writes the GPUs that an engine is for, a bit for each; seen, not documented."""
    return int.from_bytes(result.path.read_bytes()[32:36], "little")


@NEEDS_RTX
@pytest.mark.parametrize("capability", ["8.6", "8.9", "12.0"])
def test_an_engine_for_one_gpu_generation(engine, exported: ExportResult, capability: str) -> None:
    result = engine(capability)
    file = read_engine_file(result.path)
    assert file.description == result.description
    assert file.description.model == read_onnx_file(exported.path).description
    assert file.description.compute_capabilities == (capability,)
    assert file.description.implementation == "function body"
    assert file.description.inputs == (TensorSpec("images", "float32", (None, 3, 32, 32)),)
    assert file.description.outputs == (TensorSpec("logits", "float32", (None, 10)),)
    # Every weight of the network is in the engine.
    assert result.size > sum(len(t.raw_data) for t in onnx.load(exported.path).graph.initializer)


@NEEDS_RTX
def test_the_engine_runs_where_there_is_such_a_gpu_and_says_why_not_elsewhere(engine, exported: ExportResult) -> None:
    path = engine("8.6", "8.9", "12.0").path
    images = np.random.default_rng(0).standard_normal((33, 3, 32, 32)).astype(np.float32)  # more than one batch
    try:
        session = open_session(path)
    except (RuntimeUnavailableError, ModelFileError) as error:
        reason = str(error)
        assert "cuda-bindings" in reason or "NVIDIA GPU" in reason or "build it again here" in reason
        pytest.skip(f"the engine is built, but cannot run here: {reason}")
    with session, open_session(exported.path) as reference:
        found, expected = session.run(images).logits, reference.run(images).logits
        np.testing.assert_allclose(found, expected, **tolerance("runtime model"))
        assert all(time > 0 for time in session.device_milliseconds(images[:8], calls=3))


@NEEDS_RTX
def test_one_engine_for_three_gpu_generations(engine) -> None:
    words = [header_word(engine(capability)) for capability in ("8.6", "8.9", "12.0")]
    assert len(set(words)) == 3
    assert header_word(engine("8.6", "8.9", "12.0")) == words[0] | words[1] | words[2]


@NEEDS_RTX
@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT16, ir.DataType.BFLOAT16])
def test_a_file_of_16_bits(
    checkpoint_path: Path, exported: ExportResult, tmp_path: Path, engine, dtype: ir.DataType
) -> None:
    """Strongly typed: the engine's precision is the file's, its inputs and outputs stay float32."""
    graph = build_graph(freeze(load_model(load_checkpoint(checkpoint_path))), torch.zeros(1, 3, 32, 32))
    ToSixteenBitsPass(dtype)(graph)
    DescribePass(read_onnx_file(exported.path).description, "1")(graph)
    (tmp_path / "model.onnx").write_bytes(ir.serde.serialize_model(graph).SerializeToString())
    result = build_engine(tmp_path / "model.onnx", tmp_path / "model.engine", options("8.9"))
    assert {spec.dtype for spec in (*result.description.inputs, *result.description.outputs)} == {"float32"}
    weights = sum(len(tensor.raw_data) for tensor in onnx.load(exported.path).graph.initializer)
    assert engine("8.9").size - result.size > 0.4 * weights


@NEEDS_RTX
def test_progress_of_every_phase_is_reported(exported: ExportResult, tmp_path: Path) -> None:
    seen: dict[str, list[tuple[int, int]]] = {}
    build_engine(
        exported.path,
        tmp_path / "model.engine",
        options("8.9", batch_sizes=(2, 2, 2)),
        progress=lambda phase, done, total: seen.setdefault(phase, []).append((done, total)),
    )
    assert "Building engine" in seen
    for steps in seen.values():
        assert all(1 <= done <= total for done, total in steps)


@NEEDS_RTX
def test_what_progress_raises_calls_the_build_off_and_leaves_nothing(exported: ExportResult, tmp_path: Path) -> None:
    def interrupt(phase: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_engine(exported.path, tmp_path / "model.engine", options("8.9"), progress=interrupt)
    assert not list(tmp_path.iterdir())


@NEEDS_RTX
def test_a_gpu_that_it_does_not_build_for(exported: ExportResult, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"not build for compute capability 9\.0; choose among .*8\.9"):
        build_engine(exported.path, tmp_path / "model.engine", options("9.0"))
    with pytest.raises(EngineError, match=r"SM75"):  # no float32 matrix product on Turing: the builder's own reason
        build_engine(exported.path, tmp_path / "model.engine", options("7.5"))
    assert not list(tmp_path.iterdir())


@NEEDS_RTX
def test_a_graph_that_it_cannot_read(exported: ExportResult, tmp_path: Path) -> None:
    proto = onnx.load(exported.path)
    del proto.functions[:]
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(EngineError, match=r"cannot read the exported graph \(.*CompoundBatchNormalization"):
        build_engine(tmp_path / "model.onnx", tmp_path / "model.engine", options("8.9"))
    with pytest.raises(ModelFileError, match="does not exist"):
        build_engine(tmp_path / "none.onnx", tmp_path / "model.engine", options("8.9"))
    with pytest.raises(OutputError, match="is a folder"):
        build_engine(tmp_path / "model.onnx", tmp_path, options("8.9"))


def test_without_the_package_one_sentence_says_what_to_install(
    exported: ExportResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_bindings", None)
    with pytest.raises(RuntimeUnavailableError, match="pip install --no-deps tensorrt-rtx-cu13-libs"):
        build_engine(exported.path, tmp_path / "model.engine", options("8.9"))


@pytest.mark.parametrize("target", ["tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize(("source", "output"), [("m", "m"), ("m.json", "m"), ("m.timing", "m"), ("link", "m")])
def test_an_engine_does_not_replace_what_it_is_made_from(
    target: str,
    source: str,
    output: str,
    checkpoint_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "link").symlink_to("m")
    shutil.copy(checkpoint_path, tmp_path / source)
    assert run(monkeypatch, tmp_path / source, "--target", target, "-o", tmp_path / output) == 2
    captured = capsys.readouterr()
    assert "which it is made from; choose another output name." in captured.err
    assert not captured.out
    assert (tmp_path / source).read_bytes() == checkpoint_path.read_bytes()


@pytest.mark.parametrize("batch_sizes", [(0, 1, 2), (2, 1, 4), (1, 8, 4)])
def test_impossible_batch_sizes(batch_sizes: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="batch_sizes"):
        options(batch_sizes=batch_sizes)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["cbn-export", *map(str, arguments)])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as exit_:
        main()
    return int(exit_.value.code or 0)


@NEEDS_RTX
def test_the_command_line_goes_from_checkpoint_to_engine(
    checkpoint_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "deploy" / "model.engine"
    arguments = ["--target", "tensorrt-rtx", "--compute-capability", "8.9", "--batch-sizes", "1,4,16"]
    assert run(monkeypatch, checkpoint_path, "-o", output, *arguments) == 0
    printed = capsys.readouterr().out
    assert "top-1 agreement 100.00%" in printed
    assert "1 to 16, tuned for 4" in printed
    assert sorted(path.name for path in output.parent.iterdir()) == ["model.engine", "model.engine.json"]
    description = read_engine_file(output).description
    assert description.batch_sizes == (1, 4, 16)
    assert description.model.parity["top1_agreement"] == 1.0


@NEEDS_RTX
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--target", "tensorrt-rtx", "--compute-capability", "9.0"], "choose among"),
        (["--target", "tensorrt-rtx", "--batch-sizes", "8,1"], "--batch-sizes must be like"),
        (["--target", "tensorrt-rtx", "--batch-sizes", "8,1,2"], "--batch-sizes must be like"),
        (["--target", "tensorrt-rtx", "--batch-sizes", "few"], "--batch-sizes must be like"),
        (["--compute-capability", "8.9"], "--compute-capability goes with"),
    ],
)
def test_mistakes_cost_no_time_and_leave_nothing(
    arguments: list[str],
    sentence: str,
    checkpoint_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(monkeypatch, checkpoint_path, "-o", tmp_path / "model.engine", *arguments) == 2
    captured = capsys.readouterr()
    assert sentence in captured.err
    assert not captured.out  # nothing was exported first
    assert not list(tmp_path.iterdir())


def test_an_onnx_file_is_built_as_it_is(
    exported: ExportResult, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, exported.path, "--target", "tensorrt-rtx", "--inline") == 2
    assert "is built as it is" in capsys.readouterr().err


def test_no_engine_is_put_in_place_before_its_description(tmp_path: Path) -> None:
    description = describe_engine()
    path = tmp_path / "model.engine"
    path.write_bytes(b"old")
    description_path(path).mkdir()  # what cannot be replaced by a file
    with pytest.raises(OutputError):
        engine_module._write(path, b"new", description)
    assert path.read_bytes() == b"old"
    description_path(path).rmdir()
    engine_module._write(path, b"new", description)
    assert path.read_bytes() == b"new"
    assert json.loads(description_path(path).read_text()) == description.to_dict()


@NEEDS_RTX
def test_an_engine_and_a_description_that_do_not_belong_together(engine, tmp_path: Path) -> None:
    original = engine("8.9").path
    copy = tmp_path / "model.engine"
    copy.write_bytes(original.read_bytes())
    beside = description_path(copy)
    with pytest.raises(ModelFileError, match=r"model\.engine\.json does not exist"):
        read_engine_file(copy)
    plain = json.loads(description_path(original).read_text())
    for broken, sentence in (
        ("", "is not JSON"),
        ("[]", "is not an engine's description"),
        (json.dumps({**plain, "engine_format_version": 99}), "upgrade cbn-deploy"),
        (json.dumps({**plain, "implementation": "magic"}), "none of plugin, function body"),
        (json.dumps({**plain, "inputs": [{}]}), "incomplete or damaged"),
        (json.dumps({key: value for key, value in plain.items() if key != "model"}), "incomplete or damaged"),
    ):
        beside.write_text(broken)
        with pytest.raises(ModelFileError, match=sentence):
            read_engine_file(copy)
    beside.write_text(json.dumps(plain))
    assert read_engine_file(copy).description == engine("8.9").description
    copy.write_bytes(copy.read_bytes()[:-1])
    with pytest.raises(ModelFileError, match="not the engine that"):
        read_engine_file(copy)
